"""Rows ``[P, R, E]`` in strips: a program takes a few tiles of rows of a part, one after the other.

A row that fits a tile is loaded once, and all loops over its chunks come to nothing when compiled. What is summed over
rows, a program sums over its strip; ``columns`` sums strips in their order, so that bits repeat.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Lines(NamedTuple):
    """A tensor ``[P, R, E]`` as its data and its strides; the numbers of a row lie side by side."""

    data: Any
    part: int
    row: int


ABSENT = Lines(None, 0, 0)


@triton.jit
def places(t, i_p, o_r, o_e):
    """Pointers to a tile ``[BM, BE]``."""
    return t.data + i_p.to(tl.int64) * t.part + o_r.to(tl.int64)[:, None] * t.row + o_e[None, :]


@triton.jit
def within(o_r, R, o_e, E):
    return (o_r < R)[:, None] & (o_e < E)[None, :]


@triton.jit
def load(t, i_p, o_r, R, o_e, E, WIDE: tl.constexpr):
    """A tile ``[BM, BE]``, zero outside of its part."""
    return tl.load(places(t, i_p, o_r, o_e), mask=within(o_r, R, o_e, E), other=0.0).to(WIDE)


@triton.jit
def chunk(tile, t, i_p, o_r, R, o_e, E, WIDE: tl.constexpr, FITS: tl.constexpr):
    """The tile, if rows fit it, or the chunk of them at o_e."""
    return tile if FITS else load(t, i_p, o_r, R, o_e, E, WIDE)


@triton.jit
def line(t, i_p, o_e, E, WIDE: tl.constexpr):
    """``[1, BE]`` of what the rows of a part share."""
    return tl.load(t.data + i_p.to(tl.int64) * t.part + o_e, mask=o_e < E, other=0.0).to(WIDE)[None, :]


@triton.jit
def store(t, value, i_p, o_r, R, o_e, E):
    tl.store(places(t, i_p, o_r, o_e), value.to(t.data.dtype.element_ty), mask=within(o_r, R, o_e, E))


@triton.jit
def span(E, BE: tl.constexpr, FITS: tl.constexpr):
    """Where chunks end."""
    return BE if FITS else E


@triton.jit
def columns(parts, total, STRIPS, E, WIDE: tl.constexpr, BM: tl.constexpr, BE: tl.constexpr):
    """total[p] = Σ parts[p, strip]."""
    chunks = tl.cdiv(E, BE)
    i_p = tl.program_id(0) // chunks
    o_e = tl.program_id(0) % chunks * BE + tl.arange(0, BE)
    acc = tl.zeros([BM, BE], WIDE)
    for s0 in tl.range(0, STRIPS, BM):
        acc += load(parts, i_p, s0 + tl.arange(0, BM), STRIPS, o_e, E, WIDE)
    tl.store(total + i_p.to(tl.int64) * E + o_e, tl.sum(acc, 0), mask=o_e < E)
