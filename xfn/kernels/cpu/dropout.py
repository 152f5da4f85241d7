"""Bias, activation, dropout and residual in C++: see xfn/csrc/cpu/drop.h."""

from collections.abc import Sequence

from torch import Tensor

from ..._core.activations import ORDER
from ..._core.philox import threshold
from .library import swift
from .rows import DETAIL as DETAIL
from .rows import DROPOUT, DROPOUT_BACKWARD, Group, Maybe, bits, cotangent, drawn, keys, line_grad, passed
from .rows import certain as certain
from .rows import supports as supports

SWIFT = swift("dropout")


def forward(x: Group, c: Group, *, p: float, activation: str) -> tuple[Tensor]:
    rest = threshold(p), ORDER[activation]
    given, bias, residual = x
    (line,), parts = drawn([given, residual], [bias], c[0])
    if parts is None:
        return (DROPOUT(given, bias, residual, None, 0, *rest),)
    key = keys(c[0], parts)
    return (DROPOUT(parts.rows(given), parts.shared(line), parts.rows(residual), key, parts.outer, *rest),)


def backward(
    x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float, activation: str
) -> list[Maybe]:
    rest = threshold(p), ORDER[activation], bits(needs[:2])
    given, bias, residual = x
    d = cotangent(dy[0], y[0])
    (line,), parts = drawn([given, d], [bias], c[0])
    if parts is None:
        dx, dbias = DROPOUT_BACKWARD(given, bias, None, d, 0, *rest)
        dx, dbias = dx if needs[0] else None, dbias if needs[1] else None
    else:
        of = parts.rows(given), parts.shared(line), keys(c[0], parts), parts.rows(d)
        dx, dbias = DROPOUT_BACKWARD(*of, parts.outer, *rest)
        dx, dbias = parts.grad(dx, given, needs[0]), line_grad(dbias, line, bias, parts, needs[1])
    return [dx, dbias, passed(d, residual, needs[2])]
