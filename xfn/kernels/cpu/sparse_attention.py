"""Attention over a pattern's entries in C++: forward and backward fused, in O(M + N) memory; tangents and what is of
second order, from products over entries, in O(Z)."""

from collections.abc import Sequence

from torch import Tensor

from ..._core import sparse
from ..._core.definition import bits
from ..._core.entries import Grads, Group, batched, fit
from ..._core.philox import threshold
from .products import DETAIL as DETAIL
from .products import OPS, Compiled
from .products import supports as supports

FAMILY = sparse.Attention(Compiled)
jvp, hvp, jvp2 = FAMILY.jvp, FAMILY.hvp, FAMILY.jvp2


def forward(x: Group, c: Group, *, p: float, scale: float) -> tuple[Tensor, Tensor]:
    tensors = (*x, c[0], c[1], c[5])
    batch, (q, k, v, row_ends, columns, key) = batched(*zip(tensors, (3, 3, 3, 2, 2, 1), strict=True))
    out, lse = OPS.sparse_forward(q, k, v, row_ends, columns, key, scale, _threshold(c, p))
    return out.reshape(*batch, *out.shape[1:]), lse.reshape(*batch, *lse.shape[1:])


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float, scale: float) -> Grads:
    ranks = (3, 3, 3, 2, 2, 2, 2, 2, 1, 3, 2, 3, 2)
    batch, tensors = batched(*zip((*x, *c, *y, *dy), ranks, strict=True))
    q, k, v, row_ends, columns, column_ends, rows, _, key, *ys = tensors
    tables = (row_ends, columns, column_ends, rows, key)
    grads = OPS.sparse_backward(q, k, v, *tables, *ys, scale, _threshold(c, p), bits(needs))
    return fit([g.reshape(*batch, *g.shape[1:]) if n else None for g, n in zip(grads, needs, strict=True)], x, needs)


def _threshold(c: Group, p: float) -> int:
    return 0 if c[5] is None else threshold(p)
