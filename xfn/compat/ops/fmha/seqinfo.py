"""How a dimension is divided into sequences: back to back, in padded slots, or with gaps.

    lengths 2, 3, 2              0 0 1 1 1 2 2
    in slots of 4                0 0 · · 1 1 1 · 2 2 · ·
    from 1, 4 and 8 on, of 11    · 0 0 · 1 1 1 · 2 2 ·

The integers are kept twice, as lists and as int32 tensors; the lists are what an attention here reads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

Device = torch.device | str | None


@dataclass(eq=False)
class _SeqLenInfo:
    """Sequences back to back: number i is at ``seqstart_py[i]`` up to ``seqstart_py[i + 1]``."""

    seqstart: Tensor
    max_seqlen: int
    min_seqlen: int
    seqstart_py: list[int]

    @classmethod
    def from_seqlens(cls, seqlens: Sequence[int] | Tensor, *, device: Device = None) -> Self:
        lengths = integers(seqlens)
        starts = _sums(lengths)
        return cls(_int32(starts, device), max(lengths, default=-1), min(lengths, default=-1), starts)

    def from_seqlens_inplace(self, seqlens: Sequence[int]) -> None:
        """Other lengths, as many, in the same tensor."""
        lengths = _refill(seqlens, len(self.seqstart_py) - 1, self.max_seqlen)
        self.min_seqlen = min(lengths)
        self.seqstart_py[:] = _sums(lengths)
        self.seqstart.copy_(_int32(self.seqstart_py, None))

    @property
    def lengths(self) -> list[int]:
        return [stop - start for start, stop in self.intervals()]

    def intervals(self) -> Iterator[tuple[int, int]]:
        """Where each sequence starts and stops."""
        yield from pairwise(self.seqstart_py)

    def split(self, x: Tensor, batch_sizes: Sequence[int] | None = None) -> list[Tensor]:
        """``[1, M, ...]`` as one tensor for each sequence, or for so many of equal length at a time."""
        if x.shape[0] != 1 or x.shape[1] != self.seqstart_py[-1]:
            raise ValueError(f"the sequences are a tensor [1, {self.seqstart_py[-1]}, ...], but got {list(x.shape)}")
        sizes = [1] * (len(self.seqstart_py) - 1) if batch_sizes is None else list(batch_sizes)
        edges = [self.seqstart_py[i] for i in _sums(sizes)]
        chunks = x.split([stop - start for start, stop in pairwise(edges)], 1)
        return [chunk.reshape(size, -1, *x.shape[2:]) for size, chunk in zip(sizes, chunks, strict=True)]

    def to(self, device: torch.device | str) -> Self:
        return replace(self, seqstart=self.seqstart.to(device))


@dataclass(eq=False)
class _Slots(_SeqLenInfo):
    """Sequences with room behind them: number i is at ``seqstart_py[i]``, ``seqlen_py[i]`` long."""

    seqlen: Tensor
    seqlen_py: list[int]

    @property
    def lengths(self) -> list[int]:
        return self.seqlen_py

    def intervals(self) -> Iterator[tuple[int, int]]:
        for start, length in zip(self.seqstart_py, self.seqlen_py, strict=False):
            yield start, start + length

    def to(self, device: torch.device | str) -> Self:
        return replace(self, seqstart=self.seqstart.to(device), seqlen=self.seqlen.to(device))


@dataclass(eq=False)
class _PaddedSeqLenInfo(_Slots):
    """Sequences in slots of ``padding``: number i is at ``i · padding``."""

    padding: int

    @classmethod
    def from_seqlens(cls, seqlens: Sequence[int] | Tensor, *, device: Device = None) -> Self:
        raise RuntimeError("padded sequences are made by from_seqlens_padded(seqlens, padding)")

    @classmethod
    def from_seqlens_padded(cls, seqlens: Sequence[int] | Tensor, padding: int, *, device: Device = None) -> Self:
        lengths = integers(seqlens)
        if max(lengths, default=0) > padding:
            raise AssertionError(f"lengths {lengths} exceed the padding, {padding}")
        starts = [i * padding for i in range(len(lengths) + 1)]
        bounds = max(lengths, default=-1), min(lengths, default=-1)
        return cls(_int32(starts, device), *bounds, starts, _int32(lengths, device), lengths, padding)

    def from_seqlens_padded_inplace(self, seqlens: Sequence[int]) -> None:
        """Other lengths, as many, in the same tensors and slots."""
        self.seqlen_py = _refill(seqlens, len(self.seqlen_py), self.max_seqlen)
        self.min_seqlen = min(self.seqlen_py)
        self.seqlen.copy_(_int32(self.seqlen_py, None))

    def split(self, x: Tensor, batch_sizes: Sequence[int] | None = None) -> list[Tensor]:
        raise NotImplementedError("what is padded is not split: slice the tensor by intervals()")


@dataclass(eq=False)
class _GappySeqInfo(_Slots):
    """Sequences with gaps; all end at the last start."""

    @classmethod
    def from_seqlens(cls, seqlens: Sequence[int] | Tensor, *, device: Device = None) -> Self:
        raise RuntimeError("sequences with gaps are made by from_seqlens_gappy(seqstarts, seqlens, paged)")

    @classmethod
    def from_seqlens_gappy(
        cls, seqstarts: Sequence[int], seqlens: Sequence[int], paged: bool, *, device: Device = None
    ) -> Self:
        """``paged``: each start counts within its own sequence's pages, and there is no last one."""
        starts, lengths = integers(seqstarts), integers(seqlens)
        if len(starts) != len(lengths) + (not paged):
            wanted = "one start for each" if paged else "one start for each, and where the keys end"
            raise ValueError(f"{len(lengths)} sequences want {wanted}, but there are {len(starts)} starts")
        bounds = max(lengths, default=-1), min(lengths, default=-1)
        return cls(_int32(starts, device), *bounds, starts, _int32(lengths, device), lengths)

    def split(self, x: Tensor, batch_sizes: Sequence[int] | None = None) -> list[Tensor]:
        raise NotImplementedError("what has gaps is not split: slice the tensor by intervals()")


def integers(values: Sequence[int] | Tensor) -> list[int]:
    """A list, or a tensor of integers, as a list."""
    found = [int(n) for n in (values.tolist() if isinstance(values, Tensor) else values)]
    if min(found, default=0) < 0:
        raise ValueError(f"lengths and starts of sequences are 0 or more, but got {found}")
    return found


def _sums(lengths: Sequence[int]) -> list[int]:
    sums = [0]
    for length in lengths:
        sums.append(sums[-1] + length)
    return sums


def _int32(values: Sequence[int], device: Device) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def _refill(seqlens: Sequence[int], count: int, most: int) -> list[int]:
    lengths = integers(seqlens)
    if len(lengths) != count or max(lengths, default=0) > most:
        raise AssertionError(f"in place there are {count} lengths up to {most}, but got {lengths}")
    return lengths
