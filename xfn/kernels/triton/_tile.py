"""Tiles: where a tensor's numbers lie, how a tile of them is loaded, and in which order programs take tiles."""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class View(NamedTuple):
    """A tensor ``[outer, inner, …]`` as its data and its strides; the features of a row lie side by side."""

    data: Any
    outer: int
    inner: int
    head: int = 0
    row: int = 0
    col: int = 0


ABSENT = View(None, 0, 0)


@triton.jit
def start(t, i_b, i_h, INNER):
    """Where an example and a head begin."""
    outer = (i_b // INNER).to(tl.int64)
    inner = (i_b % INNER).to(tl.int64)
    return t.data + outer * t.outer + inner * t.inner + i_h.to(tl.int64) * t.head


@triton.jit
def within(o_r, ROWS, FEATURES: tl.constexpr, BF: tl.constexpr, f0=0):
    """Where a tile ``[rows, BF]``, of the features from f0 on, lies inside its matrix."""
    inside = (o_r < ROWS)[:, None]
    if FEATURES != BF:
        inside = inside & (f0 + tl.arange(0, BF) < FEATURES)[None, :]
    return inside


@triton.jit
def places(p, t, o_r, BF: tl.constexpr, f0=0):
    """Pointers to a tile ``[rows, BF]``."""
    return p + o_r.to(tl.int64)[:, None] * t.row + (f0 + tl.arange(0, BF))[None, :]


@triton.jit
def load(p, t, o_r, ROWS, FEATURES: tl.constexpr, BF: tl.constexpr, EDGE: tl.constexpr = True, f0=0):
    """A tile ``[rows, BF]``, zero outside of its matrix; without ``EDGE`` all its rows lie inside."""
    if EDGE:
        tile = tl.load(places(p, t, o_r, BF, f0), mask=within(o_r, ROWS, FEATURES, BF, f0), other=0.0)
    elif FEATURES != BF:
        tile = tl.load(places(p, t, o_r, BF, f0), mask=(f0 + tl.arange(0, BF) < FEATURES)[None, :], other=0.0)
    else:
        tile = tl.load(places(p, t, o_r, BF, f0))
    return tile


@triton.jit
def store(p, t, value, o_r, ROWS, FEATURES: tl.constexpr, BF: tl.constexpr, f0=0):
    inside = within(o_r, ROWS, FEATURES, BF, f0)
    tl.store(places(p, t, o_r, BF, f0), value.to(t.data.dtype.element_ty), mask=inside)


@triton.jit
def finite(x):
    return tl.abs(x.to(tl.float32)) < float("inf")


@triton.jit
def mended(x):
    """A tile with zeros for what is not finite."""
    return tl.where(finite(x), x, 0.0)


@triton.jit
def sound(x):
    """Rows of a tile that are finite throughout."""
    return tl.min(finite(x).to(tl.int32), 1) > 0


@triton.jit
def whole(x, inside):
    """Whether all that is inside is finite, as 0 or 1."""
    return tl.min(tl.where(inside, finite(x).to(tl.int32), 1))


@triton.jit
def turn(pid, TILES, HEADS):
    """The tile and the head of a program: last tiles first, for behind a causal mask they are the longest, and eight
    heads at a time, so that the programs which run together share keys."""
    group = pid // (8 * TILES)
    rest = pid % (8 * TILES)
    width = tl.minimum(HEADS - group * 8, 8)
    return TILES - 1 - rest // width, group * 8 + rest % width
