"""Between the products of a gated feed-forward, in C++: see xfn/csrc/cpu/gate.h."""

from collections.abc import Sequence

from torch import Tensor

from ..._core.philox import threshold
from .rows import DETAIL as DETAIL
from .rows import SWIGLU, SWIGLU_BACKWARD, Group, Maybe, Parts, bits, cotangent, drawn, keys, line_grad
from .rows import certain as certain
from .rows import supports as supports


def forward(x: Group, c: Group, *, p: float) -> tuple[Tensor]:
    _, parts, given = _taken(x, c, None)
    return (SWIGLU(*given, parts.outer, threshold(p)),)


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float) -> list[Maybe]:
    d = cotangent(dy[0], y[0])
    lines, parts, given = _taken(x, c, d)
    found = SWIGLU_BACKWARD(*given, parts.rows(d), parts.outer, threshold(p), bits(needs))
    rows = [parts.grad(grad, t, need) for grad, t, need in zip(found[:2], x[:2], needs[:2], strict=True)]
    own = zip(found[2:], lines, x[2:], needs[2:], strict=True)
    return [*rows, *(line_grad(grad, line, like, parts, need) for grad, line, like, need in own)]


def _taken(x: Group, c: Group, d: Maybe) -> tuple[list[Maybe], Parts, list[Maybe]]:
    """The biases as rows, the parts, and what the op takes: operands and key."""
    gate, up, key = x[0], x[1], c[0]
    assert gate is not None
    lines, parts = drawn([gate, up, d], x[2:], key)
    parts = parts or Parts(tuple(gate.shape[:-1]), 0)
    return lines, parts, [parts.rows(gate), parts.rows(up), *map(parts.shared, lines), keys(key, parts)]
