"""Between the products of a gated feed-forward, in C++: see xfn/csrc/cpu/gate.h."""

from collections.abc import Sequence

from torch import Tensor

from ..._core.philox import threshold
from .library import swift
from .rows import DETAIL as DETAIL
from .rows import SWIGLU, SWIGLU_BACKWARD, Group, Maybe, Parts, bits, cotangent, drawn, keys, line_grad
from .rows import certain as certain
from .rows import supports as supports

SWIFT = swift("swiglu")


def forward(x: Group, c: Group, *, p: float) -> tuple[Tensor]:
    lines, parts = drawn(x[:2], x[2:], c[0])
    if parts is None:
        return (SWIGLU(*x, None, 0, threshold(p)),)
    return (SWIGLU(*_taken(x, c, lines, parts), parts.outer, threshold(p)),)


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float) -> list[Maybe]:
    d = cotangent(dy[0], y[0])
    lines, parts = drawn([*x[:2], d], x[2:], c[0])
    if parts is None:
        found = SWIGLU_BACKWARD(*x, None, d, 0, threshold(p), bits(needs))
        return [grad if need else None for grad, need in zip(found, needs, strict=True)]
    given = _taken(x, c, lines, parts)
    found = SWIGLU_BACKWARD(*given, parts.rows(d), parts.outer, threshold(p), bits(needs))
    rows = [parts.grad(grad, t, need) for grad, t, need in zip(found[:2], x[:2], needs[:2], strict=True)]
    own = zip(found[2:], lines, x[2:], needs[2:], strict=True)
    return [*rows, *(line_grad(grad, line, like, parts, need) for grad, line, like, need in own)]


def _taken(x: Group, c: Group, lines: Group, parts: Parts) -> list[Maybe]:
    """Operands and key, as the op takes them."""
    return [*map(parts.rows, x[:2]), *map(parts.shared, lines), keys(c[0], parts)]
