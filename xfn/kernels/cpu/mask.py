"""What a boolean mask takes: it is counted, in one pass, and walked as dense tiles, as block tiles or by its entries.

Block tiles are a layout, of which all else that attention has may be asked. Entries are for a mask alone, in value and
gradient; tangents and what is of second order walk tiles, in less memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._core import choice
from ..._core.choice import ENTRIES, TILES, Census, Choice, choose
from ..._core.shapes import broadcast
from .library import isa

Maybe = Tensor | None
Group = Sequence[Maybe]

isa()
COUNT, FILL, CUT = (getattr(torch.ops.xfn_cpu, f"mask_{what}").default for what in ("count", "fill", "tiles"))


@dataclass(frozen=True)
class Counted:
    """A mask ``[..., M, N]``: how many are True up to the end of each row, and in each tile of 8 by 8."""

    mask: Tensor
    ends: Tensor
    tiles: Tensor
    choice: Choice

    def layout(self) -> list[Maybe]:
        """Live tiles, and where those that are live in part have their bits."""
        blocks, index, words = CUT(_flat(self.mask), self.tiles, self.choice.block)
        lead = self.mask.shape[:-2]
        blocks, index = (t.view(*lead, *t.shape[1:]) for t in (blocks, index))
        return [blocks, index, words] if len(words) else [blocks, None, None]

    def entries(self, *, by_column: bool) -> list[Maybe]:
        """The tables of a Csr, those by column where they are asked for; the last is not read by value and gradient."""
        room = int(self.ends[:, -1].amax())
        tables = (self.ends, *FILL(_flat(self.mask), self.ends, room, by_column))
        return [*(t.view(*self.mask.shape[:-2], t.shape[-1]) if len(t) else None for t in tables), None]


def counted(x: Group, c: Group, *, entries: bool = False) -> Counted | None:
    """The mask of a call, if that takes other ways than dense tiles; ``entries``: it may take that."""
    q, k, _, mask, slopes = x
    assert q is not None
    assert k is not None
    if mask is None or mask.dtype != torch.bool:
        return None
    M, N = mask.shape[-2:]
    if not choice.LEAST <= M * N < 1 << 31 or q.shape[-3] != M or k.shape[-3] != N or not mask.numel():
        return None
    flat = _flat(mask)
    ends, tiles, totals = COUNT(flat)
    count, *live = totals.tolist()
    examples = math.prod(broadcast(tuple(t.shape[:-3]) for t in (q, k, mask)))
    alone = slopes is None and c[0] is None and c[1] is None
    ways = (TILES, ENTRIES) if entries and alone else (TILES,)
    found = Census(len(flat), M, N, count, tuple(live))
    chosen = choose("cpu", found, examples * q.shape[-2] // len(flat), ways)
    return Counted(mask, ends, tiles, chosen) if chosen.way in ways else None


def _flat(mask: Tensor) -> Tensor:
    flat = mask.reshape(-1, *mask.shape[-2:])
    return flat if flat.stride(-1) == 1 else flat.contiguous()
