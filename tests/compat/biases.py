"""Every bias class of xformers.ops, by example, and which keys a query sees in it, from the definition of each."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from xfn.compat.ops.fmha import attn_bias as b
from xfn.compat.ops.fmha.attn_bias import AttentionBias

Keep = Callable[[int, int, int, int], bool]


@dataclass(frozen=True)
class Sample:
    """A bias; the queries and the places of the keys of each of its blocks; how many places there are; and whether
    query i of Mq sees key j of Mk, within a block."""

    bias: AttentionBias
    queries: Sequence[int]
    places: Sequence[Sequence[int]]
    N: int
    keep: Keep

    def __str__(self) -> str:
        return type(self.bias).__name__

    @property
    def M(self) -> int:
        return sum(self.queries)

    @property
    def varlen(self) -> bool:
        return isinstance(self.bias, b.VARLEN_BIASES)

    def mask(self) -> Tensor:
        """True where a query sees a key: ``[M, N]``."""
        seen, start = torch.zeros(self.M, self.N, dtype=torch.bool), 0
        for count, places in zip(self.queries, self.places, strict=True):
            for i in range(count):
                for j, place in enumerate(places):
                    seen[start + i, place] = self.keep(i, j, count, len(places))
            start += count
        return seen

    def added(self) -> Tensor:
        """The whole bias, in float64."""
        tensor = self.bias.tensor[0] if isinstance(self.bias, b.LowerTriangularMaskWithTensorBias) else 0
        return torch.where(self.mask(), 0.0, -math.inf).double() + tensor


def every(i: int, j: int, Mq: int, Mk: int) -> bool:
    return True


def causal(i: int, j: int, Mq: int, Mk: int) -> bool:
    return j <= i


def offset(i: int, j: int, Mq: int, Mk: int) -> bool:
    return j <= i + Mk - Mq


def last(w: int, corner: bool = True) -> Keep:
    """The last w of the keys that a causal mask shows."""
    return lambda i, j, Mq, Mk: i + corner * (Mk - Mq) - w < j <= i + corner * (Mk - Mq)


def near(left: int, right: int) -> Keep:
    return lambda i, j, Mq, Mk: i + Mk - Mq - left <= j <= i + Mk - Mq + right


def single(bias: AttentionBias, keep: Keep, M: int = 5, N: int = 7) -> Sample:
    return Sample(bias, [M], [range(N)], N, keep)


def runs(starts: Sequence[int], lengths: Sequence[int]) -> list[range]:
    return [range(start, start + length) for start, length in zip(starts, lengths, strict=True)]


def waves(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float64).sin().reshape(shape)


Q = [3, 0, 2]
KEYS = [4, 2, 3]
PACKED = (Q, runs([0, 4, 6], KEYS), 9)
USED = [4, 2, 0]
PADDED = (Q, runs([0, 5, 10], USED), 15)
GAPPY = (Q, runs([1, 6, 9], KEYS), 14)
DIAGONAL = b.BlockDiagonalMask.from_seqlens(Q, KEYS)
GAPS = ([1, 6, 9, 14], KEYS)
TABLES = torch.tensor([[3, 5, 0], [0, 0, 0], [3, 6, 0]])
"""Unused slots hold a page that is in use, and two sequences begin with the same one."""
PAGED = (Q, [[6, 7, 10, 11], [0], [6, 7, 12]], 16)
PAGED_GAPPY = (Q, [[7, 10, 11], [0], [12, 13]], 16)
WIDE = b.BlockDiagonalPaddedKeysMask.from_seqlens(Q, 6, [4, 1, 3])

EXAMPLES = [
    single(b.LowerTriangularMask(), causal),
    single(b.LowerTriangularMask(device="cpu"), causal, 4, 2),
    single(b.LowerTriangularMaskWithTensorBias(waves(1, 2, 5, 7)), causal),
    single(b.LowerTriangularMask().add_bias(waves(1, 2, 3, 3)), causal, 3, 3),
    single(b.LowerTriangularFromBottomRightMask(), offset),
    single(b.LowerTriangularFromBottomRightMask(), offset, 6, 3),
    single(b.LowerTriangularFromBottomRightLocalAttentionMask(2), last(2)),
    single(b.LowerTriangularFromBottomRightMask().make_local_attention(3), last(3), 6, 4),
    single(b.LocalAttentionFromBottomRightMask(1, 2), near(1, 2)),
    single(b.LocalAttentionFromBottomRightMask(window_left=0, window_right=0), near(0, 0), 6, 4),
    Sample(DIAGONAL, *PACKED, every),
    Sample(b.BlockDiagonalMask.from_seqlens([2, 3]), [2, 3], runs([0, 2], [2, 3]), 5, every),
    Sample(DIAGONAL.make_causal(), *PACKED, causal),
    Sample(DIAGONAL.make_causal_from_bottomright(), *PACKED, offset),
    Sample(DIAGONAL.make_local_attention(2), *PACKED, last(2, False)),
    Sample(DIAGONAL.make_local_attention_from_bottomright(2), *PACKED, last(2)),
    Sample(b.BlockDiagonalPaddedKeysMask.from_seqlens(Q, 5, USED), *PADDED, every),
    Sample(b.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(Q, 5, USED), *PADDED, offset),
    Sample(b.BlockDiagonalLocalAttentionPaddedKeysMask.from_seqlens_local(Q, 5, USED, 1, 1), *PADDED, near(1, 1)),
    Sample(b.BlockDiagonalCausalLocalAttentionPaddedKeysMask.from_seqlens_local(Q, 5, USED, 2), *PADDED, last(2)),
    Sample(b.BlockDiagonalGappyKeysMask.from_seqlens(Q, *GAPS), *GAPPY, every),
    Sample(b.BlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens(Q, *GAPS), *GAPPY, offset),
    Sample(b.PagedBlockDiagonalPaddedKeysMask.from_seqlens(Q, [4, 1, 3], TABLES, 2), *PAGED, every),
    Sample(WIDE.make_paged(TABLES, 2, b.PagedBlockDiagonalPaddedKeysMask), *PAGED, every),
    Sample(WIDE.make_paged(TABLES, 2, b.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask), *PAGED, offset),
    Sample(b.PagedBlockDiagonalGappyKeysMask.from_seqlens(Q, [1, 0, 2], [3, 1, 2], TABLES, 2), *PAGED_GAPPY, every),
    Sample(
        b.BlockDiagonalGappyKeysMask.from_seqlens(Q, [1, 6, 14, 18], [3, 1, 2]).make_paged(
            TABLES, 2, 6, b.PagedBlockDiagonalCausalWithOffsetGappyKeysMask
        ),
        *PAGED_GAPPY,
        offset,
    ),
]
every_bias = pytest.mark.parametrize("sample", EXAMPLES, ids=str)


def dense(q: Tensor, k: Tensor, v: Tensor, added: Tensor | float = 0.0, scale: float | None = None) -> Tensor:
    """Attention on ``[B, M, H, K]`` with every weight in sight; who sees nothing gets zeros."""
    s = torch.einsum("bmhk,bnhk->bhmn", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale) + added
    blind = (s == -math.inf).all(-1, keepdim=True)
    weights = s.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
    return torch.einsum("bhmn,bnhk->bmhk", weights, v)


def drawn(sample: Sample, *lead: int, K: int = 4, V: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v in float64 ``[*lead, M, H, K]``."""
    shapes = [(sample.M, 2, K), (sample.N, 2, K), (sample.N, 2, V)]
    q, k, v = (torch.randn(*lead, *shape, dtype=torch.float64) for shape in shapes)
    return q, k, v
