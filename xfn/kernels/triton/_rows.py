"""Rows of a matrix with all their features: one tile, or, where that would be too wide, chunks of BF features.

Where the features fit a tile, it is loaded once, and all of this comes to nothing when compiled.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ._tile import load, mended, sound, start


class Rows(NamedTuple):
    """Rows ``at`` of ``count``, ``row`` apart and the first at ``data``: their tile, if they fit one, and which of them
    are finite throughout, if that is asked."""

    data: Any
    row: Any
    at: Any
    count: Any
    tile: Any
    good: Any


@triton.jit
def rows(
    t, i_b, i_h, INNER, o_r, ROWS, F: tl.constexpr, BF: tl.constexpr, STRICT: tl.constexpr, EDGE: tl.constexpr = True
):
    """Rows of an example and a head; where ``STRICT``, zeros stand for what is not finite."""
    p = start(t, i_b, i_h, INNER)
    tile, good = 0, 0
    if F <= BF:
        tile = load(p, t, o_r, ROWS, F, BF, EDGE)
        if STRICT:
            good = sound(tile)
            tile = mended(tile)
    elif STRICT:
        good = o_r >= 0
        for f0 in tl.range(0, F, BF):
            good = good & sound(load(p, t, o_r, ROWS, F, BF, True, f0))
    return Rows(p, t.row, o_r, ROWS, tile, good)


@triton.jit
def chunk(a, f0, F: tl.constexpr, BF: tl.constexpr, STRICT: tl.constexpr):
    """The tile ``[rows, BF]`` of the features from f0 on."""
    if F <= BF:
        tile = a.tile
    else:
        tile = load(a.data, a, a.at, a.count, F, BF, True, f0)
        if STRICT:
            tile = mended(tile)
    return tile


@triton.jit
def product(a, b, acc, F: tl.constexpr, BF: tl.constexpr, PRECISION: tl.constexpr, STRICT: tl.constexpr):
    """acc + a bᵀ."""
    if F <= BF:
        acc = tl.dot(a.tile, tl.trans(b.tile), acc, input_precision=PRECISION)
    else:
        for f0 in tl.range(0, F, BF):
            turned = tl.trans(chunk(b, f0, F, BF, STRICT))
            acc = tl.dot(chunk(a, f0, F, BF, STRICT), turned, acc, input_precision=PRECISION)
    return acc


@triton.jit
def dots(a, b, acc, F: tl.constexpr, BF: tl.constexpr):
    """acc + rowsum(a ∘ b)."""
    for f0 in tl.range(0, F, BF):
        left, right = chunk(a, f0, F, BF, False), chunk(b, f0, F, BF, False)
        acc += tl.sum(left.to(tl.float32) * right.to(tl.float32), 1)
    return acc
