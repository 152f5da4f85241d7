"""Bias, activation, dropout and residual in plain torch:  dx = keep / (1 − p) · activation′(x + bias) · dy."""

from collections.abc import Sequence

from torch import Tensor

from ..._core.activations import ACTIVATIONS
from ..._core.kinds import wide
from ..._core.philox import dropped
from .rows import Maybe, cotangent, fit, passed
from .rows import supports as supports

Group = Sequence[Maybe]


def forward(x: Group, c: Group, *, p: float, activation: str) -> tuple[Tensor]:
    residual = x[2]
    given, moved = _moved(x)
    y = dropped(ACTIVATIONS[activation].value(moved), c[0], p)
    return ((y if residual is None else y + residual).to(given.dtype).contiguous(),)


def backward(
    x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float, activation: str
) -> list[Maybe]:
    given, moved = _moved(x)
    d = cotangent(dy[0], y[0])
    dx = dropped(d.to(moved.dtype), c[0], p) * ACTIVATIONS[activation].slope(moved)
    return [fit(dx, given, needs[0]), fit(dx.sum(-2), x[1], needs[1]), passed(d, x[2], needs[2])]


def _moved(x: Group) -> tuple[Tensor, Tensor]:
    given, bias = x[:2]
    assert given is not None
    wider = given.to(wide(given.dtype))
    return given, wider if bias is None else wider + bias.unsqueeze(-2)
