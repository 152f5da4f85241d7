"""A product and what follows it in plain torch:  dx = d W,  dW = dᵀ x,  with d the gradient of x Wᵀ + bias."""

from collections.abc import Sequence

from torch import Tensor

from ..._core.kinds import wide
from . import dropout
from .rows import Maybe, fit
from .rows import supports as supports

Group = Sequence[Maybe]


def forward(x: Group, c: Group, *, p: float, activation: str) -> tuple[Tensor]:
    given, weight = _wide(x)
    (y,) = dropout.forward((given @ weight.mT, *x[2:]), c, p=p, activation=activation)
    return (y.to(x[0].dtype),)  # type: ignore[union-attr]


def backward(
    x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float, activation: str
) -> list[Maybe]:
    given, weight = _wide(x)
    moved, rest = (given @ weight.mT, *x[2:]), (any(needs[:2]), *needs[2:])
    d, *others = dropout.backward(moved, c, y, dy, rest, p=p, activation=activation)
    dx = None if d is None else d @ weight
    dweight = None if d is None else _pairs(d, given, alone=x[1] is not None and x[1].dim() == 2)
    mine = [None if t is None else fit(t, at, need) for t, at, need in zip((dx, dweight), x, needs, strict=False)]
    return mine + others


def _wide(x: Group) -> tuple[Tensor, Tensor]:
    """x and the weight in the dtype of sums."""
    given, weight = x[:2]
    assert given is not None
    assert weight is not None
    return given.to(wide(given.dtype)), weight.to(wide(given.dtype))


def _pairs(d: Tensor, x: Tensor, alone: bool) -> Tensor:
    """dᵀ x, summed over all rows at once where they have one weight."""
    return d.flatten(0, -2).mT @ x.flatten(0, -2) if alone else d.mT @ x
