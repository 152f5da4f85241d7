"""Softmax of rows in Triton, and its logarithm.

    dx = y (dy − Σ y dy)              of softmax
    dx = dy − exp(y) Σ dy             of its logarithm

A row that fits a tile is loaded once, and where it may not see it is not loaded at all. Of a longer one, a first pass
keeps the greatest and the sum of its exponentials, and a second writes.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..._core.rows import Parts
from ..._core.shapes import broadcast
from ._launch import Group, Maybe, Strips, cotangent, lines, parted
from ._launch import supports as supports
from ._strips import chunk, load, places, span, store, within

WIDEST, WIDEST_BACKWARD = 16384, 8192
"""Numbers of a row in one tile."""
INF: tl.constexpr = tl.constexpr(float("inf"))


@triton.jit
def bound(t, i_p, o_r, R, E):
    """A bound of each row ``[BM, 1]``."""
    found = tl.load(t.data + i_p.to(tl.int64) * t.part + o_r, mask=o_r < R, other=0)
    return tl.minimum(tl.maximum(found, 0), E).to(tl.int32)[:, None]


@triton.jit
def shown(x, lo, hi, i_p, o_r, R, o_e, E, WIDE: tl.constexpr):
    """A tile ``[BM, BE]``, −∞ where it is hidden."""
    inside = within(o_r, R, o_e, E)
    if lo.data is not None:
        inside = inside & (o_e[None, :] >= bound(lo, i_p, o_r, R, E))
    if hi.data is not None:
        inside = inside & (o_e[None, :] < bound(hi, i_p, o_r, R, E))
    return tl.load(places(x, i_p, o_r, o_e), mask=inside, other=-INF).to(WIDE)


@triton.jit
def soften(
    x, lo, hi, y, R, E, STRIPS, LONG, LOGARITHM: tl.constexpr, FITS: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    i_p = tl.program_id(0) // STRIPS
    o_r = tl.program_id(0) % STRIPS * BM + tl.arange(0, BM)
    tile = shown(x, lo, hi, i_p, o_r, R, tl.arange(0, BE), E, WIDE) if FITS else 0
    top = tl.full([BM], -INF, WIDE)
    total = tl.zeros([BM], WIDE)
    for e0 in tl.range(0, span(E, BE, FITS), BE):
        s = tile if FITS else shown(x, lo, hi, i_p, o_r, R, e0 + tl.arange(0, BE), E, WIDE)
        higher = tl.maximum(top, tl.max(s, 1))
        base = tl.where(higher == -INF, 0.0, higher)
        total = total * tl.exp(top - base) + tl.sum(tl.exp(s - base[:, None]), 1)
        top = higher
    base = tl.where(top == -INF, 0.0, top)[:, None]
    total = tl.where(total == 0, 1.0, total)[:, None]
    for e0 in tl.range(0, span(E, BE, FITS), BE):
        s = tile if FITS else shown(x, lo, hi, i_p, o_r, R, e0 + tl.arange(0, BE), E, WIDE)
        found = s - base - tl.log(total) if LOGARITHM else tl.exp(s - base) / total
        store(y, tl.where(s == -INF, -INF if LOGARITHM else 0.0, found), i_p, o_r, R, e0 + tl.arange(0, BE), E)


@triton.jit
def soften_backward(
    y, dy, dx, R, E, STRIPS, LONG, LOGARITHM: tl.constexpr, FITS: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    i_p = tl.program_id(0) // STRIPS
    o_r = tl.program_id(0) % STRIPS * BM + tl.arange(0, BM)
    y_tile = load(y, i_p, o_r, R, tl.arange(0, BE), E, WIDE) if FITS else 0
    d_tile = load(dy, i_p, o_r, R, tl.arange(0, BE), E, WIDE) if FITS else 0
    total = tl.zeros([BM], WIDE)
    for e0 in tl.range(0, span(E, BE, FITS), BE):
        out = chunk(y_tile, y, i_p, o_r, R, e0 + tl.arange(0, BE), E, WIDE, FITS)
        d = chunk(d_tile, dy, i_p, o_r, R, e0 + tl.arange(0, BE), E, WIDE, FITS)
        if LOGARITHM:
            total += tl.sum(tl.where(out == -INF, 0.0, d), 1)
        else:
            total += tl.sum(tl.where(out == 0, 0.0, out * d), 1)
    for e0 in tl.range(0, span(E, BE, FITS), BE):
        out = chunk(y_tile, y, i_p, o_r, R, e0 + tl.arange(0, BE), E, WIDE, FITS)
        d = chunk(d_tile, dy, i_p, o_r, R, e0 + tl.arange(0, BE), E, WIDE, FITS)
        if LOGARITHM:
            found = tl.where(out == -INF, 0.0, d - tl.exp(out) * total[:, None])
        else:
            found = tl.where(out == 0, 0.0, out * (d - total[:, None]))
        store(dx, found, i_p, o_r, R, e0 + tl.arange(0, BE), E)


def forward(x: Group, c: Group, *, logarithm: bool = False) -> tuple[Tensor]:
    (given,) = x
    assert given is not None
    bounds = [t for t in c if t is not None]
    batch = broadcast((tuple(given.shape[:-1]), *(tuple(t.shape) for t in bounds)))
    parts = Parts(batch, len(batch) - 1 if bounds else 0)
    rows = parts.flat(given)
    assert rows is not None
    lo, hi = (lines(None if t is None else t.expand(batch).reshape(parts.sizes)) for t in c)
    y, call = rows.new_empty(rows.shape), Strips.of(rows, WIDEST)
    call.run(soften, lines(rows), lo, hi, lines(y), LOGARITHM=logarithm, **call.fits)
    return (y.view(*batch, given.shape[-1]),)


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, logarithm: bool = False) -> list[Maybe]:
    out = y[0]
    assert out is not None
    d = cotangent(dy[0], out)
    parts = parted([out, d], [])
    rows, slopes = parts.flat(out), parts.flat(d)
    assert rows is not None
    dx, call = rows.new_empty(rows.shape), Strips.of(rows, WIDEST_BACKWARD)
    call.run(soften_backward, lines(rows), lines(slopes), lines(dx), LOGARITHM=logarithm, **call.fits)
    return [parts.grad(dx.view(*parts.batch, out.shape[-1]), x[0], needs[0])]
