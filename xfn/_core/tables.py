"""The look-up tables of a layout: which tiles a row or a column has, and the bits of those that are partial.

A tile is ``block`` queries by ``block`` keys. It is dead, full, or partial: then it has a bit for each coefficient.
Bits past the last query or key mean nothing. Tables are built from tensors alone; only how many tiles are partial is
data, so that finding it waits for the device, once, while the value is made.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .pytree import pytree

BLOCKS = (8, 16, 32, 64, 128)
COEFFICIENTS = 1 << 22
"""How many are looked at together."""


@pytree
class Lists:
    """The live tiles of each row: of a layout's rows, or of its columns.

    index: int32 ``[H|1, I, J]``: the full tiles, then the partial ones, each in ascending order; zeros behind them.
    counts: int32 ``[H|1, I, 2]``: how many are full, how many are live.
    order: int32 ``[H·I]``: the rows h · I + i, those with the most live tiles first.
    """

    index: Tensor
    counts: Tensor
    order: Tensor

    @staticmethod
    def of(blocks: Tensor, partial: Tensor | None) -> "Lists":
        """From the live tiles bool ``[H|1, I, J]``, and which of them are partial; one head after the other."""
        parts = [None] * blocks.shape[-3] if partial is None else partial.split(1, -3)
        each = [_compact(b, p) for b, p in zip(blocks.split(1, -3), parts, strict=True)]
        index, counts = (torch.cat(t, -3) for t in zip(*each, strict=True))
        order = counts[..., 1].flatten(-2).argsort(dim=-1, descending=True, stable=True).int()
        return Lists(index, counts, order)


def _compact(blocks: Tensor, partial: Tensor | None) -> tuple[Tensor, Tensor]:
    """The index of the live tiles of each row, and their counts."""
    J = blocks.shape[-1]
    full = blocks if partial is None else blocks & ~partial
    some = full.sum(-1, dtype=torch.int32)
    place = full.cumsum(-1, dtype=torch.int32).sub(1).masked_fill(~full, J)  # what is dead goes behind all others
    live = some
    if partial is not None:
        behind = partial.cumsum(-1, dtype=torch.int32) + (some[..., None] - 1)
        place, live = torch.where(partial, behind, place), blocks.sum(-1, dtype=torch.int32)
    columns = torch.arange(J, dtype=torch.int32, device=blocks.device).expand(place.shape)
    room = torch.zeros(*place.shape[:-1], J + 1, dtype=torch.int32, device=blocks.device)
    return room.scatter(-1, place.long(), columns)[..., :J].contiguous(), torch.stack([some, live], -1)


@pytree
class Bits:
    """The coefficients of partial tiles.

    index: int32 ``[H|1, I, J]``: where a partial tile has its words, −1 for dead and full ones. Tiles may share them.
    words: int32 ``[Q, block, block / 32]``: bit j of word w of row i is coefficient (i, 32 w + j); one word if fewer.
    """

    index: Tensor
    words: Tensor

    def tidied(self) -> "Bits | None":
        """Without the words of no tile; None where no tile is partial."""
        partial = self.index >= 0
        used, place = self.index[partial].unique(return_inverse=True)
        if not len(used):
            return None
        index = self.index.clone()
        index[partial] = place.int()
        return Bits(index, self.words[used.long()])


def pack(seen: Tensor) -> Tensor:
    """bool ``[..., block, block]`` as words."""
    block = seen.shape[-1]
    eight = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=seen.device)
    bytes = (seen.unflatten(-1, (block // 8, 8)) * eight).sum(-1, dtype=torch.uint8)
    return F.pad(bytes, (0, max(0, 4 - block // 8))).contiguous().view(torch.int32)


def unpack(words: Tensor, block: int) -> Tensor:
    """Words as bool ``[..., block, block]``."""
    places = torch.arange(min(32, block), dtype=torch.int32, device=words.device)
    return (words[..., None] >> places & 1).flatten(-2).bool()


def expand(blocks: Tensor, index: Tensor | None, words: Tensor | None, block: int, M: int, N: int) -> Tensor:
    """True where a tile has a coefficient: bool ``[..., H|1, M, N]``."""
    tiles = blocks[..., None, None].expand(*blocks.shape, block, block)
    if index is not None and words is not None and words.shape[-3]:
        where = index.clamp(min=0).long().flatten(-3)[..., None]
        own = torch.take_along_dim(words.flatten(-2), where, -2).unflatten(-1, words.shape[-2:])
        bits = unpack(own.unflatten(-3, index.shape[-3:]), block)
        tiles = tiles & (bits | (index < 0)[..., None, None])
    return tiles.transpose(-3, -2).flatten(-4, -3).flatten(-2)[..., :M, :N]


class Found(NamedTuple):
    """What became of tiles that were looked at: which are live, and the bits of the partial ones, if there are any."""

    blocks: Tensor
    bits: Bits | None


class Tiling(NamedTuple):
    """How M queries and N keys are cut."""

    block: int
    M: int
    N: int

    @property
    def counts(self) -> tuple[int, int]:
        return -(-self.M // self.block), -(-self.N // self.block)

    def places(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Head, query and key of the coefficients of tiles ``at [c, 3]``: ``[c, 1, 1] [c, block, 1] [c, 1, block]``."""
        inside = torch.arange(self.block, device=at.device)
        h, i, j = at[:, :, None, None].unbind(1)
        return h, i * self.block + inside[:, None], j * self.block + inside

    def settle(self, full: Tensor, unsure: Tensor, seen: Callable[[Tensor], Tensor]) -> Found:
        """Full tiles, and those whose coefficients ``seen(at [c, 3]) -> bool [c, block, block]`` tells."""
        blocks, index = full.clone(), torch.full(full.shape, -1, dtype=torch.int32, device=full.device)
        kept, count = [], 0
        for at in unsure.nonzero().split(max(1, COEFFICIENTS // self.block**2)):
            _, m, n = self.places(at)
            tiles, inside = seen(at), (m < self.M) & (n < self.N)
            some, all = (tiles & inside).flatten(1).any(1), (tiles | ~inside).flatten(1).all(1)
            blocks[tuple(at[some].unbind(1))] = True
            partial = some & ~all
            kept.append(pack(tiles[partial]))
            index[tuple(at[partial].unbind(1))] = torch.arange(len(kept[-1]), dtype=torch.int32).to(at.device) + count
            count += len(kept[-1])
        return Found(blocks, Bits(index, torch.cat(kept)) if count else None)

    def of_mask(self, mask: Tensor) -> Found:
        """bool ``[H, M, N]``, tile by tile."""
        (down, along), size = self.counts, self.block
        edges = (0, along * size - self.N, 0, down * size - self.M)

        def cut(value: bool) -> Tensor:
            whole = F.pad(mask, edges, value=value) if any(edges) else mask
            return whole.reshape(len(mask), down, size, along, size)

        tiles = cut(False)
        some, every = tiles.transpose(2, 3).flatten(3).any(3), cut(True).transpose(2, 3).flatten(3).all(3)
        return self.settle(some & every, some & ~every, lambda at: tiles[at[:, 0], at[:, 1], :, at[:, 2]])

    def join(self, blocks: Sequence[Tensor], bits: Sequence[Bits | None], *, union: bool) -> Found:
        """Where two layouts both have a coefficient, or where one has. A tile that one side leaves as it is keeps its
        words; the others are looked at."""
        (a, b), either = blocks, [t for t in bits if t is not None]
        if not either:
            return Found(a | b if union else a & b, None)
        a, b = torch.broadcast_tensors(a, b)
        pa, pb = (torch.zeros_like(a) if t is None else (t.index >= 0).expand_as(a) for t in bits)
        fa, fb = a & ~pa, b & ~pb
        full = fa | fb if union else fa & fb
        keep_a, keep_b = (pa & ~b, pb & ~a) if union else (pa & fb, pb & fa)

        def seen(at: Tensor) -> Tensor:
            one, *two = (self._tiles(t, at) for t in either)
            return reduce(torch.logical_or if union else torch.logical_and, two, one)

        found = self.settle(full, pa & pb, seen)
        index, words, count = torch.full(a.shape, -1, dtype=torch.int32, device=a.device), [], 0
        for own, keep in ((found.bits, None), (bits[0], keep_a), (bits[1], keep_b)):
            if own is not None:
                there = own.index >= 0 if keep is None else keep
                index = torch.where(there, own.index + count, index)
                words.append(own.words)
                count += len(own.words)
        return Found(found.blocks | keep_a | keep_b, Bits(index, torch.cat(words)).tidied() if words else None)

    def _tiles(self, bits: Bits, at: Tensor) -> Tensor:
        """bool ``[c, block, block]`` of partial tiles; a layout of one head is every head's."""
        h = at[:, 0] if len(bits.index) > 1 else torch.zeros_like(at[:, 0])
        return unpack(bits.words[bits.index[h, at[:, 1], at[:, 2]].long()], self.block)
