"""Biases of many sequences whose keys lie in pages of one store.

    key j of block b is at block_tables[b, j // page_size] · page_size + j % page_size

Keys in use are gathered, in the order of their sequences, and attended to back to back: what the rest of the tables
points at is never read. Two sequences may have pages in common.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ....bias import Bias
from .block_diagonal import Varlen, paired
from .seqinfo import Device, _GappySeqInfo, _PaddedSeqLenInfo, _SeqLenInfo, integers
from .triangular import expanded


class Paged(Varlen):
    """Keys in pages; ``firsts`` is where a block's keys start, counted in its own pages."""

    block_tables: Tensor
    page_size: int

    @property
    def firsts(self) -> list[int]:
        return [0] * len(self.k_seqinfo.lengths)

    def places(self) -> Tensor:
        """Where each key in use is in the store, block by block."""
        used, table = self.k_seqinfo.lengths, self.block_tables
        lengths = torch.tensor(used)
        owner = torch.arange(len(used)).repeat_interleave(lengths, output_size=sum(used))
        moved = torch.tensor(self.firsts) - (lengths.cumsum(0) - lengths)
        j = (torch.arange(len(owner)) + moved[owner]).to(table.device)
        pages = table[owner.to(table.device), j // self.page_size].long()
        return pages * self.page_size + j % self.page_size

    def keys(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        places = self.places().to(k.device)
        return k.index_select(1, places), v.index_select(1, places)

    def materialize(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """As a tensor ``[..., Mq, Mk]`` over the store, whose Mk places must hold every page in use."""
        places, M = self.places().to(device), self.q_seqinfo.seqstart_py[-1]
        if shape[-2] != M or shape[-1] <= max(places.tolist(), default=-1):
            raise ValueError(f"there are {M} queries, and keys at {places.tolist()}, but shape={tuple(shape)}")
        packed = self.as_bias(M, len(places)).materialize(M, len(places), dtype, torch.device(device))[0]
        store = packed.new_full((M, shape[-1]), -torch.inf)
        return expanded(store.scatter_reduce(1, places.expand(M, -1), packed, "amax"), shape)

    def to(self, device: torch.device | str) -> Self:
        moved: Any = super().to(device)
        moved.block_tables = self.block_tables.to(device)
        return moved  # type: ignore[no-any-return]


@dataclass(eq=False)
class PagedBlockDiagonalPaddedKeysMask(Paged):
    """Each block sees its keys, which are the first so many of its pages."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: _PaddedSeqLenInfo
    block_tables: Tensor
    page_size: int

    @classmethod
    def from_seqlens(
        cls,
        q_seqlen: Sequence[int] | Tensor,
        kv_seqlen: Sequence[int] | Tensor,
        block_tables: Tensor,
        page_size: int,
        *,
        device: Device = None,
    ) -> Self:
        """From how many queries and keys there are in each block, and the pages of each, ``[blocks, pages]``."""
        queries, keys = integers(q_seqlen), integers(kv_seqlen)
        paired(queries, keys)
        room = block_tables.shape[1] * page_size
        slots = _PaddedSeqLenInfo.from_seqlens_padded(keys, room, device=device)
        return cls(_SeqLenInfo.from_seqlens(queries, device=device), slots, block_tables, page_size)


@dataclass(eq=False)
class PagedBlockDiagonalCausalWithOffsetPaddedKeysMask(PagedBlockDiagonalPaddedKeysMask):
    """Each block causal, from its bottom-right corner."""

    def within(self, each: Bias) -> Bias:
        return each.causal("bottom-right")


@dataclass(eq=False)
class PagedBlockDiagonalGappyKeysMask(Paged):
    """Each block sees its keys, which are so many of its pages from ``seqstart[b]`` on."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: _GappySeqInfo
    block_tables: Tensor
    page_size: int

    @classmethod
    def from_seqlens(
        cls,
        q_seqlen: Sequence[int] | Tensor,
        kv_seqstarts: Sequence[int],
        kv_seqlen: Sequence[int],
        block_tables: Tensor,
        page_size: int,
        *,
        device: Device = None,
    ) -> Self:
        """As of :class:`PagedBlockDiagonalPaddedKeysMask`, with where each block's keys start in its own pages."""
        queries = integers(q_seqlen)
        paired(queries, kv_seqlen)
        keys = _GappySeqInfo.from_seqlens_gappy(kv_seqstarts, kv_seqlen, True, device=device)
        return cls(_SeqLenInfo.from_seqlens(queries, device=device), keys, block_tables, page_size)

    @property
    def firsts(self) -> list[int]:
        return self.k_seqinfo.seqstart_py


@dataclass(eq=False)
class PagedBlockDiagonalCausalWithOffsetGappyKeysMask(PagedBlockDiagonalGappyKeysMask):
    """Each block causal, from its bottom-right corner."""

    def within(self, each: Bias) -> Bias:
        return each.causal("bottom-right")
