"""From rows ``[P, R, E]`` to launches: how many numbers a tile has, and how many tiles a strip."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._core.dispatch import Call
from ..._core.kinds import wide
from ..._core.rows import Maybe as Maybe
from ..._core.rows import Parts
from ..._core.rows import cotangent as cotangent
from ..._core.rows import passed as passed
from ._strips import ABSENT, Lines, columns
from ._target import DEVICES, INTERPRETED

Group = Sequence[Maybe]

WIDEST = 1 << 16
"""The longest row."""
AREA = 4096
"""Numbers of a tile, of rows that are shorter than that."""
PROGRAMS = 2 if INTERPRETED else 256
"""How many strips sum at most: what they leave behind is summed again."""


def supports(call: Call) -> list[str]:
    given = [t for t in call.tensors.values() if t is not None]
    device, numbers = given[0].device.type, given[0].shape[-1]
    against = {
        f"it runs on {' or '.join(DEVICES)}, not on {device}": device not in DEVICES,
        f"rows of {numbers} numbers are longer than {WIDEST}": numbers > WIDEST,
        "a tensor is empty": not all(t.numel() for t in given),
    }
    return [reason for reason, holds in against.items() if holds]


def parted(rows: Sequence[Maybe], shared: Sequence[Maybe], inner: int | None = None) -> Parts:
    """Parts of ``[..., E]`` each, or all as one."""
    first = rows[0]
    assert first is not None
    return Parts.of(rows, shared, inner) or Parts(tuple(first.shape[:-1]), 0)


def lines(t: Maybe) -> Lines:
    """``[P, R, E]``, or ``[P, E]`` that the rows of a part share, as its strides."""
    if t is None:
        return ABSENT
    if t.shape[-1] > 1 and t.stride(-1) != 1:
        t = t.contiguous()
    return Lines(t, t.stride(0), t.stride(1) if t.dim() == 3 else 0)


class Strips(NamedTuple):
    """P parts of R rows of E numbers, each part in so many strips of ``long`` tiles."""

    P: int
    R: int
    E: int
    strips: int
    long: int
    like: Tensor
    shape: dict[str, Any]

    @staticmethod
    def of(x: Tensor, most: int, sums: bool = False) -> "Strips":
        """Of ``x [P, R, E]``: a tile has at most ``most`` numbers of a row; strips that sum have many tiles."""
        (P, R, E), double = x.shape, x.dtype == torch.float64
        BE = 16 if INTERPRETED else max(16, min(triton.next_power_of_2(E), most >> double))
        BM = 2 if INTERPRETED else min(max(1, (AREA >> double) // BE), triton.next_power_of_2(R))
        tiles = triton.cdiv(R, BM)
        long = triton.cdiv(P * tiles, PROGRAMS) if sums else 1
        shape = {
            "BM": BM,
            "BE": BE,
            "WIDE": tl.float64 if double else tl.float32,
            "num_warps": min(max(4, BM * BE // 512), 16),
            "num_stages": 1,
        }
        return Strips(P, R, E, triton.cdiv(tiles, long), long, x, shape)

    @property
    def fits(self) -> dict[str, bool]:
        """Whether a tile has all of a row."""
        return {"FITS": self.shape["BE"] >= self.E}

    def new(self, *dims: int) -> Tensor:
        """Numbers in the dtype of sums."""
        return self.like.new_empty(self.P, *dims, dtype=wide(self.like.dtype))

    def run(self, kernel: Any, *args: Any, chunks: int = 1, **constants: Any) -> None:
        """A program per strip, or per chunk of one."""
        with torch.cuda.device_of(self.like):
            grid = (self.P * self.strips * chunks,)
            kernel[grid](*args, self.R, self.E, self.strips, self.long, **constants, **self.shape)

    def total(self, sums: Tensor) -> Tensor:
        """``[P, strips, F]``, summed over strips."""
        P, strips, F = sums.shape
        if strips == 1:
            return sums[:, 0]
        found, (BM, BE) = self.new(F), (2, 16) if INTERPRETED else (32, 64)
        with torch.cuda.device_of(sums):
            shape = {name: self.shape[name] for name in ("WIDE", "num_stages")}
            columns[(P * triton.cdiv(F, BE),)](lines(sums), found, strips, F, BM=BM, BE=BE, num_warps=4, **shape)
        return found
