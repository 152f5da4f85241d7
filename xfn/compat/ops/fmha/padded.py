"""Biases of many sequences whose keys lie in padded slots, or with gaps; corners are those of the keys in use.

With i and j counted within a block of Mq queries and of the Mk keys in use, and s = Mk − Mq:

    BlockDiagonalPaddedKeysMask                              all
    BlockDiagonalCausalWithOffsetPaddedKeysMask              j ≤ i + s
    BlockDiagonalLocalAttentionPaddedKeysMask(left, right)   i + s − left ≤ j ≤ i + s + right
    BlockDiagonalCausalLocalAttentionPaddedKeysMask(w)       i + s − w < j ≤ i + s
    BlockDiagonalGappyKeysMask                               all
    BlockDiagonalCausalWithOffsetGappyKeysMask               j ≤ i + s
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from .... import bias
from ....bias import Bias
from .block_diagonal import Varlen, paired
from .seqinfo import Device, _GappySeqInfo, _PaddedSeqLenInfo, _SeqLenInfo, integers
from .triangular import window

if TYPE_CHECKING:
    from .paged import PagedBlockDiagonalGappyKeysMask, PagedBlockDiagonalPaddedKeysMask


class Slotted(Varlen):
    """Keys in a space that has room for more; what lies behind the last slot is not read."""

    def keys(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        room = self.k_seqinfo.seqstart_py[-1]
        return k[:, :room], v[:, :room]

    def materialize(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        whole = (self.q_seqinfo.seqstart_py[-1], self.k_seqinfo.seqstart_py[-1])
        if tuple(shape[-2:]) != whole:
            raise ValueError(f"there are {whole[0]} queries and {whole[1]} places of keys, but shape={tuple(shape)}")
        return super().materialize(shape, dtype, device)


@dataclass(eq=False)
class BlockDiagonalPaddedKeysMask(Slotted):
    """The keys of block b are the first so many from ``b · padding`` on."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: _PaddedSeqLenInfo

    @classmethod
    def from_seqlens(
        cls,
        q_seqlen: Sequence[int] | Tensor,
        kv_padding: int,
        kv_seqlen: Sequence[int] | Tensor,
        causal_diagonal: Any = None,
        *,
        device: Device = None,
    ) -> Self:
        """From how many queries there are in each block, the room for its keys, and how many are used."""
        return cls(*_padded(q_seqlen, kv_padding, kv_seqlen, device))

    def as_bias(self, M: int, N: int) -> Bias:
        return self.within(bias.padded(self.q_seqinfo.lengths, self.k_seqinfo.padding, self.k_seqinfo.lengths))

    def make_paged(
        self, block_tables: Tensor, page_size: int, paged_type: "type[PagedBlockDiagonalPaddedKeysMask]"
    ) -> "PagedBlockDiagonalPaddedKeysMask":
        """The same lengths, with keys in pages."""
        room = block_tables.shape[1] * page_size
        keys = _PaddedSeqLenInfo.from_seqlens_padded(self.k_seqinfo.lengths, room, device=self.k_seqinfo.seqlen.device)
        return paged_type(self.q_seqinfo, keys, block_tables, page_size)


@dataclass(eq=False)
class BlockDiagonalCausalWithOffsetPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    """Each block causal, from its bottom-right corner; ``causal_diagonal`` is of old, and changes nothing."""

    causal_diagonal: Any = None

    def within(self, each: Bias) -> Bias:
        return each.causal("bottom-right")


@dataclass(eq=False)
class BlockDiagonalLocalAttentionPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    """Keys up to ``window_left`` before and ``window_right`` behind the diagonal: at most their sum and one."""

    window_left: int
    window_right: int

    def __post_init__(self) -> None:
        if self.window_left < 0 or self.window_right < 0:
            raise ValueError(f"a window reaches 0 keys or more, but got {self.window_left} and {self.window_right}")

    @classmethod
    def from_seqlens_local(
        cls,
        q_seqlen: Sequence[int] | Tensor,
        kv_padding: int,
        kv_seqlen: Sequence[int] | Tensor,
        window_left: int,
        window_right: int,
        *,
        device: Device = None,
    ) -> Self:
        return cls(*_padded(q_seqlen, kv_padding, kv_seqlen, device), window_left, window_right)

    def within(self, each: Bias) -> Bias:
        return each.local(self.window_left, self.window_right, "bottom-right")


@dataclass(eq=False)
class BlockDiagonalCausalLocalAttentionPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    """Each block causal from its bottom-right corner, and of that the last ``_window_size`` keys."""

    _window_size: int

    def __post_init__(self) -> None:
        window(self._window_size)

    @classmethod
    def from_seqlens_local(
        cls,
        q_seqlen: Sequence[int] | Tensor,
        kv_padding: int,
        kv_seqlen: Sequence[int] | Tensor,
        window_size: int,
        *,
        device: Device = None,
    ) -> Self:
        return cls(*_padded(q_seqlen, kv_padding, kv_seqlen, device), window_size)

    def within(self, each: Bias) -> Bias:
        return each.local(self._window_size - 1, 0, "bottom-right")


@dataclass(eq=False)
class BlockDiagonalGappyKeysMask(Slotted):
    """The keys of block b are so many from ``seqstart[b]`` on."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: _GappySeqInfo

    @classmethod
    def from_seqlens(
        cls,
        q_seqlen: Sequence[int] | Tensor,
        kv_seqstarts: Sequence[int],
        kv_seqlen: Sequence[int],
        *,
        device: Device = None,
    ) -> Self:
        """From how many queries there are in each block, where its keys start, and how many there are; the last
        start, one more than there are blocks, is where all keys end."""
        queries = integers(q_seqlen)
        paired(queries, kv_seqlen)
        keys = _GappySeqInfo.from_seqlens_gappy(kv_seqstarts, kv_seqlen, False, device=device)
        return cls(_SeqLenInfo.from_seqlens(queries, device=device), keys)

    def as_bias(self, M: int, N: int) -> Bias:
        """The bounds among keys that lie back to back, moved to where each block's keys are."""
        queries, keys = self.q_seqinfo.lengths, self.k_seqinfo.lengths
        bounds = super().as_bias(M, sum(keys)).resolve(M, sum(keys))
        packed = _SeqLenInfo.from_seqlens(keys).seqstart_py
        moved = [start - at for start, at in zip(self.k_seqinfo.seqstart_py, packed, strict=True)][:-1]
        shift = torch.tensor(moved).repeat_interleave(torch.tensor(queries), output_size=sum(queries))
        if self.k_seqinfo.seqstart_py[-1] != N:
            raise ValueError(f"the keys end at {self.k_seqinfo.seqstart_py[-1]}, but there are {N}")
        assert bounds.lo is not None
        assert bounds.hi is not None
        return bias.span(bounds.lo + shift, bounds.hi + shift)

    def make_paged(
        self,
        block_tables: Tensor,
        page_size: int,
        notional_padding: int,
        paged_type: "type[PagedBlockDiagonalGappyKeysMask]",
    ) -> "PagedBlockDiagonalGappyKeysMask":
        """The same keys, of which block b had ``notional_padding`` places from b times that on, in pages."""
        if notional_padding % page_size:
            raise ValueError(f"notional_padding={notional_padding} is no multiple of page_size={page_size}")
        starts = [start - i * notional_padding for i, start in enumerate(self.k_seqinfo.seqstart_py[:-1])]
        if not all(0 <= start < block_tables.shape[1] * page_size for start in starts):
            raise AssertionError(f"starts {starts} are not all in {block_tables.shape[1]} pages of {page_size}")
        keys = _GappySeqInfo.from_seqlens_gappy(
            starts, self.k_seqinfo.lengths, True, device=self.k_seqinfo.seqlen.device
        )
        return paged_type(self.q_seqinfo, keys, block_tables, page_size)


@dataclass(eq=False)
class BlockDiagonalCausalWithOffsetGappyKeysMask(BlockDiagonalGappyKeysMask):
    """Each block causal, from its bottom-right corner."""

    def within(self, each: Bias) -> Bias:
        return each.causal("bottom-right")


def _padded(
    q_seqlen: Sequence[int] | Tensor, padding: int, kv_seqlen: Sequence[int] | Tensor, device: Device
) -> tuple[_SeqLenInfo, _PaddedSeqLenInfo]:
    queries, keys = integers(q_seqlen), integers(kv_seqlen)
    paired(queries, keys)
    slots = _PaddedSeqLenInfo.from_seqlens_padded(keys, padding, device=device)
    return _SeqLenInfo.from_seqlens(queries, device=device), slots
