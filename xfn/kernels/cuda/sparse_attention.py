"""Attention over a pattern's entries in CUDA: forward and backward fused, in O(M + N) memory; tangents and what is of
second order, from products over entries, in O(Z)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._core import sparse
from ..._core.entries import Grads, Group, batched, fit
from ..._core.philox import threshold
from .products import DETAIL as DETAIL
from .products import OPS, Launched, cut, launch, line, room, rows
from .products import supports as supports

FAMILY = sparse.Attention(Launched)
jvp, hvp, jvp2 = FAMILY.jvp, FAMILY.hvp, FAMILY.jvp2


def forward(x: Group, c: Group, *, p: float, scale: float) -> tuple[Tensor, Tensor]:
    tensors = (*x, c[0], c[1], c[5])
    batch, (q, k, v, *rest) = batched(*zip(tensors, (3, 3, 3, 2, 2, 1), strict=True))
    (M, H, K), V, B = q.shape[1:], v.shape[-1], math.prod(batch)
    widest = max(K, V)
    out = q.new_empty(B, M, H, room(V, widest, q.dtype))
    lse = q.new_empty(B, H, M, dtype=torch.float32)
    launch(OPS.forward, q, *_readable(widest, q, k, v, *rest), out, lse, scale, _threshold(c, p))
    return cut(out, V, batch), lse.reshape(*batch, H, M)


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float, scale: float) -> Grads:
    ranks = (3, 3, 3, 2, 2, 2, 2, 2, 1, 3, 2, 3, 2)
    batch, tensors = batched(*zip((*x, *c, *y, *dy), ranks, strict=True))
    widths = [t.shape[-1] for t in tensors[:3]]
    readable = _readable(max(widths), *tensors)
    q, k, v, row_ends, columns, column_ends, lines, _, key, out, lse, dout, dlse = readable
    B, (M, H) = math.prod(batch), q.shape[1:3]
    delta = q.new_empty(B, H, M, dtype=torch.float32)
    grads = [t.new_empty(B, *t.shape[1:]) if need else None for t, need in zip((q, k, v), needs, strict=True)]
    numbers = (scale, _threshold(c, p))
    launch(OPS.queries, q, q, k, v, row_ends, columns, key, out, lse, dout, dlse, delta, grads[0], *numbers)
    if needs[1] or needs[2]:
        launch(OPS.keys, q, q, k, v, column_ends, lines, key, lse, dout, delta, *grads[1:], *numbers)
    return fit([g if g is None else cut(g, F, batch) for g, F in zip(grads, widths, strict=True)], x, needs)


def _readable(widest: int, *tensors: Tensor | None) -> list[Any]:
    """Of four dims are those that have rows of features."""
    return [None if t is None else rows(t, widest) if t.dim() == 4 else line(t) for t in tensors]


def _threshold(c: Group, p: float) -> int:
    return 0 if c[5] is None else threshold(p)
