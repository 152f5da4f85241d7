"""Root mean square normalisation.

    y = x / √(mean x² + ε) · weight        over the E features of a row

Moments are in float32, or float64 where that came in; y is in x's dtype.

Source: Zhang and Sennrich, "Root mean square layer normalization" (2019).
"""

from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from .._core.case import Case
from .._core.errors import ShapeError
from .._core.kinds import check_kinds, check_number, check_tensors, wide
from .._core.params import listed, taken, tree
from .._core.primitive import Lean
from .._core.shapes import Signature
from ._init import ones

SIGNATURE = Signature.parse("x E, weight? E -> y E")
EPS = 1e-6


class RMSNorm(TypedDict):
    """weight ``[E]``, which may be left out."""

    weight: NotRequired[Tensor]


def init_rms_norm(key: Tensor, dim: int, weight: bool = True, *, dtype: torch.dtype = torch.float32) -> RMSNorm:
    """Parameters of :func:`rms_norm`: ones.

    Args:
        key: they are on its device; nothing is drawn.
        dim: E.
        weight: whether there is one.
        dtype: of the parameters.

    Returns:
        ``{"weight": [E]}``.

    Example:
        >>> from xfn import random
        >>> init_rms_norm(random.key(0), 2)
        {'weight': tensor([1., 1.])}
    """
    return {"weight": ones(key, dim, dtype=dtype)} if weight else {}


def rms_norm(params: RMSNorm, x: Tensor, eps: float = EPS, *, backend: str | None = None) -> Tensor:
    """x / √(mean x² + ε) · weight, for every row of E features.

    Args:
        params: ``{"weight": [E]}``, or empty.
        x: ``[..., E]``.
        eps: ε.
        backend: ``"reference"``, ``"cpu"``, ``"triton"`` or ``"aten"``; by default the first that can.

    Returns:
        ``[..., E]`` in x's dtype.

    Raises:
        ShapeError, ValueError, TypeError: parameters or x are not of these names, shapes and dtypes.

    Example:
        >>> rms_norm({}, torch.tensor([1.0, 7.0]))
        tensor([0.2000, 1.4000])
    """
    if backend is None and type(eps) is float and (given := listed(params, "weight")) is not None:
        y = RMS_NORM.swiftly(x, *given, eps)
        if y is not None:
            return y
    t, _, _ = taken("rms_norm", SIGNATURE, params, {"x": x}, mixed=True)
    check_kinds({"x": x}, {"weight": t.get("weight")})
    return RMS_NORM.bind(x, t.get("weight"), eps=check_number("eps", eps), backend=backend)[0]


def rms_norm_add(
    params: RMSNorm, x: Tensor, y: Tensor, eps: float = EPS, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """The norm of a sum, and the sum: (rms_norm(x + y), x + y). Nothing is written in place.

    Args:
        params: as of :func:`rms_norm`.
        x, y: ``[..., E]``.
        eps: ε.
        backend: as of :func:`rms_norm`.

    Returns:
        Two tensors ``[..., E]``.

    Raises:
        ShapeError, ValueError, TypeError: x and y are not alike, or as of :func:`rms_norm`.

    Example:
        >>> rms_norm_add({}, torch.tensor([1.0, 3.0]), torch.tensor([0.0, 4.0]))
        (tensor([0.2000, 1.4000]), tensor([1., 7.]))
    """
    check_tensors({"x": x, "y": y})
    check_kinds({"x": x, "y": y}, {})
    if x.shape != y.shape:
        raise ShapeError(f"x is {list(x.shape)}, but y is {list(y.shape)}: what is added has x's shape")
    total = x + y
    return rms_norm(params, total, eps, backend=backend), total


def reference(x: Tensor, weight: Tensor | None, *, eps: float) -> tuple[Tensor]:
    """The specification, in plain torch."""
    y = x.to(wide(x.dtype))
    y = y * (y.square().mean(-1, keepdim=True) + eps).rsqrt()
    return ((y if weight is None else y * weight).to(x.dtype),)


RMS_NORM = Lean("rms_norm", SIGNATURE, reference, options=("eps",), backends=("cpu", "triton", "aten"))


def _case(name: str, x: str, names: str, tags: str = "", add: bool = False, **sizes: int) -> Case:
    def call(x: Tensor, *rest: Tensor, backend: str | None = None) -> tuple[Tensor, ...]:
        params = tree(dict(zip(names.split(), rest, strict=True)))
        if add:
            return rms_norm_add(params, x, x.sin(), backend=backend)  # type: ignore[arg-type]
        return (rms_norm(params, x, backend=backend),)  # type: ignore[arg-type]

    shapes = {"x": x} | dict.fromkeys(names.split(), "E")
    return Case(name, call, shapes, {"B": 2, "M": 3, "E": 5, **sizes}, frozenset(tags.split()))


CASES = (
    _case("weight", "B M E", "weight", tags="compiled"),
    _case("a row", "E", "weight", tags="tiny", E=3),
    _case("plain", "M E", "", tags="tiny", M=2, E=2),
    _case("of a sum", "M E", "weight", add=True, E=19),
    _case("no rows", "M E", "weight", tags="empty", M=0),
)
