"""Layer normalisation.

    y = (x − mean x) / √(var x + ε) · weight + bias        over the E features of a row, var without Bessel's correction

Moments are in float32, or float64 where that came in; y is in x's dtype. It is not written with torch's own layer_norm,
whose second derivatives are wrong where the inner one is a jvp.

Source: Ba, Kiros and Hinton, "Layer normalization" (2016).
"""

from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from .._core.case import Case
from .._core.kinds import check_kinds, check_number, wide
from .._core.params import listed, taken, tree
from .._core.primitive import Lean
from .._core.shapes import Signature
from ._init import ones, zeros

SIGNATURE = Signature.parse("x E, weight? E, bias? E -> y E")
EPS = 1e-5
"""What is added to the variance, as torch does; the same on every backend and in every dtype."""


class LayerNorm(TypedDict):
    """weight ``[E]``, bias ``[E]``; either may be left out."""

    weight: NotRequired[Tensor]
    bias: NotRequired[Tensor]


def init_layer_norm(
    key: Tensor, dim: int, weight: bool = True, bias: bool = True, *, dtype: torch.dtype = torch.float32
) -> LayerNorm:
    """Parameters of :func:`layer_norm`: ones and zeros.

    Args:
        key: they are on its device; nothing is drawn.
        dim: E.
        weight, bias: which there are.
        dtype: of the parameters.

    Returns:
        ``{"weight": [E], "bias": [E]}``.

    Example:
        >>> from xfn import random
        >>> init_layer_norm(random.key(0), 2)
        {'weight': tensor([1., 1.]), 'bias': tensor([0., 0.])}
    """
    params: LayerNorm = {}
    if weight:
        params["weight"] = ones(key, dim, dtype=dtype)
    if bias:
        params["bias"] = zeros(key, dim, dtype=dtype)
    return params


def layer_norm(params: LayerNorm, x: Tensor, eps: float = EPS, *, backend: str | None = None) -> Tensor:
    """(x − mean x) / √(var x + ε) · weight + bias, for every row of E features.

    Args:
        params: ``{"weight": [E], "bias": [E]}``, either or both of which may be left out.
        x: ``[..., E]``.
        eps: ε.
        backend: ``"reference"``, ``"cpu"``, ``"triton"`` or ``"aten"``; by default the first that can.

    Returns:
        ``[..., E]`` in x's dtype.

    Raises:
        ShapeError, ValueError, TypeError: parameters or x are not of these names, shapes and dtypes.

    Example:
        >>> layer_norm({}, torch.tensor([1.0, 2.0, 3.0]))
        tensor([-1.2247,  0.0000,  1.2247])
    """
    if backend is None and type(eps) is float and (given := listed(params, "weight", "bias")) is not None:
        y = LAYER_NORM.swiftly(x, *given, eps)
        if y is not None:
            return y
    t, _, _ = taken("layer_norm", SIGNATURE, params, {"x": x}, mixed=True)
    check_kinds({"x": x}, {name: t.get(name) for name in ("weight", "bias")})
    options = {"eps": check_number("eps", eps)}
    return LAYER_NORM.bind(x, t.get("weight"), t.get("bias"), **options, backend=backend)[0]


def reference(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> tuple[Tensor]:
    """The specification, in plain torch."""
    y = x.to(wide(x.dtype))
    y = y - y.mean(-1, keepdim=True)
    y = y * (y.square().mean(-1, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight
    return ((y if bias is None else y + bias).to(x.dtype),)


LAYER_NORM = Lean("layer_norm", SIGNATURE, reference, options=("eps",), backends=("cpu", "triton", "aten"))


def _case(name: str, x: str, names: str, tags: str = "", **sizes: int) -> Case:
    def call(x: Tensor, *rest: Tensor, backend: str | None = None) -> tuple[Tensor]:
        params = tree(dict(zip(names.split(), rest, strict=True)))
        return (layer_norm(params, x, backend=backend),)  # type: ignore[arg-type]

    shapes = {"x": x} | dict.fromkeys(names.split(), "E")
    return Case(name, call, shapes, {"B": 2, "M": 3, "E": 5, **sizes}, frozenset(tags.split()))


CASES = (
    _case("affine", "B M E", "weight bias", tags="compiled"),
    _case("a row", "E", "weight bias", tags="tiny", E=3),
    _case("plain", "M E", "", tags="tiny", M=2, E=2),
    _case("weight", "M E", "weight", E=19),
    _case("bias", "B M E", "bias", E=16),
    _case("no rows", "M E", "weight bias", tags="empty", M=0),
)
