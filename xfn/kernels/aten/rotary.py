"""Pairs of features turned, in plain torch.

Backward dy turns back, and over heads  dcos = Σ dy[a] x[a] + dy[b] x[b],  dsin = Σ dy[b] x[a] − dy[a] x[b].
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._core.kinds import wide
from ..._core.shapes import broadcast
from .rows import Maybe, cotangent, fit
from .rows import supports as supports

Group = Sequence[Maybe]


def forward(x: Group, c: Group, *, pairing: str) -> tuple[Tensor]:
    given, cos, sin = _taken(x)
    return (_turned(given, cos, sin, pairing),)


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, pairing: str) -> list[Maybe]:
    given, cos, sin = _taken(x)
    d = cotangent(dy[0], y[0])
    grads: list[Maybe] = [fit(_turned(d, cos, -sin, pairing), given, True) if needs[0] else None, None, None]
    if any(needs[1:]):
        (a, b), (u, v) = ([t.to(cos.dtype) for t in _pairs(of, cos, pairing)] for of in (given, d))
        found = ((u * a + v * b).sum(-2), (v * a - u * b).sum(-2))
        grads[1:] = [fit(grad, t, need) for grad, t, need in zip(found, x[1:], needs[1:], strict=True)]
    return grads


def _taken(x: Group) -> tuple[Tensor, Tensor, Tensor]:
    """x, and the tables in the dtype of sums."""
    given, cos, sin = x
    assert given is not None
    assert cos is not None
    assert sin is not None
    return given, cos.to(wide(given.dtype)), sin.to(wide(given.dtype))


def _pairs(x: Tensor, cos: Tensor, pairing: str) -> tuple[Tensor, Tensor]:
    """Views of the first numbers of all pairs, and of the second."""
    n = cos.shape[-1]
    if pairing == "halves":
        return x[..., :n], x[..., n : 2 * n]
    return x[..., : 2 * n : 2], x[..., 1 : 2 * n : 2]


def _turned(x: Tensor, cos: Tensor, sin: Tensor, pairing: str) -> Tensor:
    batch = broadcast((tuple(x.shape[:-2]), tuple(cos.shape[:-1]), tuple(sin.shape[:-1])))
    y = x.expand(*batch, *x.shape[-2:]).clone(memory_format=torch.contiguous_format)
    (a, b), c, s = _pairs(x, cos, pairing), cos.unsqueeze(-2), sin.unsqueeze(-2)
    for to, value in zip(_pairs(y, cos, pairing), (a * c - b * s, a * s + b * c), strict=True):
        to.copy_(value)
    return y
