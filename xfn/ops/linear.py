"""A linear map, and what may follow it in one pass.

    y = activation(x Wᵀ + b)

Products are summed as torch sums them; y is in x's dtype.
"""

import math
from collections.abc import Callable
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from .. import random
from .._core.activations import ACTIVATIONS
from .._core.case import Case
from .._core.kinds import wide
from .._core.params import taken, tree
from .._core.shapes import Signature
from ._init import even, fan_in
from .dropout import dropout

SIGNATURE = Signature.parse("x E, weight F E, bias? F -> y F")


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
    params: Linear, x: Tensor, activation: str | Callable[[Tensor], Tensor] = "identity", *, backend: str | None = None
) -> Tensor:
    """activation(x Wᵀ + b).

    Args:
        params: ``{"weight": [F, E], "bias": [F]}``; without the bias, nothing is added.
        x: ``[..., E]``.
        activation: the name of one of :mod:`xfn.activations`, or a function.
        backend: of the pass behind the product, as in :func:`xfn.dropout`.

    Returns:
        ``[..., F]``.

    Raises:
        ShapeError, ValueError, TypeError: parameters or x are not of these names, shapes and dtypes.

    Example:
        >>> params = init_linear(random.key(0), 3, 5)
        >>> linear(params, torch.ones(2, 3), "relu").shape
        torch.Size([2, 5])
    """
    t, _, _ = taken("linear", SIGNATURE, params, {"x": x})
    if activation == "identity":
        return affine(t["x"], t["weight"], t.get("bias"))
    return dropout(product(t["x"], t["weight"]), 0.0, t.get("bias"), activation, backend=backend)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b, by torch where it can: its own map knows no symbolic sizes, and of one row see :func:`product`."""
    if x.dim() > 1 and not torch.compiler.is_compiling():
        return torch.nn.functional.linear(x, weight, bias)
    return dropout(product(x, weight), 0.0, bias)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ. One row is taken for a matrix, for torch gives a batch of tangents of its own product a dim too many."""
    return x @ weight.mT if x.dim() > 1 else (x.unsqueeze(0) @ weight.mT).squeeze(0)


def reference(params: Linear, x: Tensor, activation: str = "identity") -> Tensor:
    """The specification, in plain torch."""
    y = torch.einsum("...e,fe->...f", x, params["weight"])
    y = y + params["bias"] if "bias" in params else y
    return ACTIVATIONS[activation].value(y.to(wide(y.dtype))).to(y.dtype)


def _case(name: str, names: str, shapes: str, activation: str = "identity", tags: str = "", **sizes: int) -> Case:
    def call(x: Tensor, *rest: Tensor, backend: str | None = None) -> tuple[Tensor]:
        params = tree(dict(zip(names.split(), rest, strict=True)))
        if backend == "reference":
            return (reference(params, x, activation),)  # type: ignore[arg-type]
        return (linear(params, x, activation, backend=backend),)  # type: ignore[arg-type]

    given = dict(zip(("x", *names.split()), shapes.split(","), strict=True))
    return Case(name, call, given, {"B": 2, "M": 3, "E": 4, "F": 5, **sizes}, frozenset(tags.split()))


CASES = (
    _case("plain", "weight", "B M E,F E"),
    _case("bias", "weight bias", "B M E,F E,F", tags="tiny", M=1, E=2, F=2),
    _case("vector", "weight bias", "E,F E,F"),
    _case("gelu", "weight bias", "B M E,F E,F", "gelu"),
    _case("relu without bias", "weight", "M E,F E", "relu"),
    _case("no rows", "weight bias", "M E,F E,F", "silu", "empty", M=0),
)
