"""A linear map, and what may follow it in one pass.

    y = residual + drop(activation(x Wᵀ + b))

Products are summed as torch sums them, or where one kernel does all of it, in float32; y is in x's dtype.
"""

import math
from collections.abc import Callable
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from .. import random
from .._core.activations import ACTIVATIONS
from .._core.case import Case, beside
from .._core.kinds import check_probability, wide
from .._core.params import listed, taken, tree
from .._core.philox import dropped
from .._core.shapes import Signature
from ._init import even, fan_in
from .fused_linear import fused_linear, swiftly

SIGNATURE = Signature.parse("x E, residual? F, weight F E, bias? F -> y F")


class Linear(TypedDict):
    """weight ``[F, E]``, bias ``[F]``."""

    weight: Tensor
    bias: NotRequired[Tensor]


def init_linear(
    key: Tensor, inputs: int, outputs: int, bias: bool = True, *, dtype: torch.dtype = torch.float32
) -> Linear:
    """Parameters of :func:`linear`, even in ±1/√inputs, as ``torch.nn.Linear`` draws them.

    Args:
        key: what they are drawn with; they are on its device.
        inputs, outputs: E and F.
        bias: whether there is one.
        dtype: of the parameters.

    Returns:
        ``{"weight": [F, E], "bias": [F]}``.

    Example:
        >>> {name: list(t.shape) for name, t in init_linear(random.key(0), 3, 5).items()}
        {'weight': [5, 3], 'bias': [5]}
    """
    weight = fan_in(random.fold_in(key, 0), outputs, inputs, dtype=dtype)
    if not bias:
        return {"weight": weight}
    bound = 1 / math.sqrt(max(1, inputs))
    return {"weight": weight, "bias": even(random.fold_in(key, 1), outputs, bound=bound, dtype=dtype)}


def linear(
    params: Linear,
    x: Tensor,
    activation: str | Callable[[Tensor], Tensor] = "identity",
    p: float = 0.0,
    residual: Tensor | None = None,
    *,
    key: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """residual + drop(activation(x Wᵀ + b)).

    On a GPU, where nothing is differentiated and something follows the map, it is one kernel. On a CPU plain maps of
    many rows in float32 have products of their own where those are faster than torch's.

    Args:
        params: ``{"weight": [F, E], "bias": [F]}``; without the bias, nothing is added.
        x: ``[..., M, E]``, or one row ``[E]``.
        activation: the name of one of :mod:`xfn.activations`, or a function.
        p: probability of dropping.
        residual: ``[..., M, F]``, added last.
        key: what is drawn with, as of :func:`xfn.dropout`. Required when p > 0.
        backend: of the pass behind the product, as in :func:`xfn.dropout`, or of both.

    Returns:
        ``[..., M, F]``.

    Raises:
        ShapeError, ValueError, TypeError: parameters or x are not of these names, shapes and dtypes.
        KeyRequired: p > 0 without a key.

    Example:
        >>> params = init_linear(random.key(0), 3, 5)
        >>> linear(params, torch.ones(2, 3), "relu").shape
        torch.Size([2, 5])
    """
    alone = activation == "identity" and residual is None and type(p) is float and p == 0
    if alone and (given := listed(params, "weight", "bias")) is not None:
        y = swiftly(x, *given)
        if y is not None:
            return y
    t, _, _ = taken("linear", SIGNATURE, params, {"x": x, "residual": residual})
    p = check_probability(p)
    return fused_linear(t["x"], t["weight"], p, t.get("bias"), activation, t["residual"], key=key, backend=backend)


def reference(
    params: Linear, x: Tensor, activation: str, p: float, residual: Tensor | None, key: Tensor | None
) -> Tensor:
    """The specification, in plain torch."""
    y = torch.einsum("...e,fe->...f", x, params["weight"])
    y = y + params["bias"] if "bias" in params else y
    y = dropped(ACTIVATIONS[activation].value(y.to(wide(y.dtype))), key, p).to(y.dtype)
    return y if residual is None else y + residual


def _case(
    name: str, names: str, shapes: str, activation: str = "identity", p: float = 0.0, tags: str = "", **sizes: int
) -> Case:
    def call(x: Tensor, *rest: Tensor, backend: str | None = None) -> tuple[Tensor]:
        given: dict[str, Any] = dict(zip(names.split(), rest, strict=True))
        residual, key = given.pop("residual", None), beside(random.key(3), x) if p else None
        params: Any = tree(given)
        if backend == "reference":
            keys = None if key is None else random.spread(key, x.shape[:-2])
            return (reference(params, x, activation, p, residual, keys),)
        return (linear(params, x, activation, p, residual, key=key, backend=backend),)

    given = dict(zip(("x", *names.split()), shapes.split(","), strict=True))
    return Case(name, call, given, {"B": 2, "M": 3, "E": 4, "F": 5, **sizes}, frozenset(tags.split()))


CASES = (
    _case("plain", "weight", "B M E,F E"),
    _case("bias", "weight bias", "B M E,F E,F", tags="tiny", M=1, E=2, F=2),
    _case("vector", "weight bias", "E,F E,F"),
    _case("gelu", "weight bias", "B M E,F E,F", "gelu"),
    _case("dropout and residual", "weight residual", "B M E,F E,B M F", "relu", 0.3),
    _case("no rows", "weight bias", "M E,F E,F", "silu", tags="empty", M=0),
)
