"""Layer normalisation in C++: see xfn/csrc/cpu/norm.h."""

from collections.abc import Sequence

from torch import Tensor

from .library import detail, swift
from .rows import NORM, NORM_BACKWARD, Maybe, Parts, bits, cotangent
from .rows import certain as certain
from .rows import supports as supports

DETAIL, SWIFT = detail(), swift("layer_norm")

Group = Sequence[Maybe]


def forward(x: Group, c: Group, *, eps: float, centered: bool = True) -> tuple[Tensor]:
    given, weight, bias = (*x, None)[:3]
    parts = Parts.of([given], [weight, bias])
    if parts is None:
        return (NORM(given, weight, bias, 0, eps, centered)[0],)
    lines = parts.shared(weight), parts.shared(bias)
    return (NORM(parts.rows(given), *lines, parts.outer, eps, centered)[0],)


def backward(
    x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, eps: float, centered: bool = True
) -> list[Maybe]:
    given, weight, bias = (*x, None)[:3]
    d = cotangent(dy[0], y[0])
    parts = Parts.of([given, d], [weight, bias])
    if parts is None:
        found = NORM_BACKWARD(given, weight, bias, d, None, 0, eps, centered, bits(needs))
        return [g if need else None for g, need in zip(found, needs, strict=False)]
    lines = parts.shared(weight), parts.shared(bias)
    dx, *shared = NORM_BACKWARD(parts.rows(given), *lines, parts.rows(d), None, parts.outer, eps, centered, bits(needs))
    grads = [parts.shared_grad(g, t, need) for g, t, need in zip(shared, x[1:], needs[1:], strict=False)]
    return [parts.grad(dx, given, needs[0]), *grads]
