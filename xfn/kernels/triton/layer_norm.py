"""Layer normalisation in Triton; without a mean and a bias, root mean square normalisation.

With n = (x − mean) r, r = 1 / √(var + ε) and g = dy · weight:  dx = r (g − mean g − n mean(g n)). A program of the
backward sums dy n and dy over its strip. Where rows fit a tile, it does so as it makes dx; else it first finds the four
numbers of each row, and then goes down its strip chunk by chunk.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ._launch import Group, Maybe, Strips, cotangent, lines, parted
from ._launch import supports as supports
from ._strips import chunk, line, load, span, store

WIDEST, WIDEST_BACKWARD = 16384, 8192
"""Numbers of a row in one tile."""


@triton.jit
def moments(tile, x, i_p, o_r, R, E, EPS: tl.constexpr, CENTERED: tl.constexpr, WIDE: tl.constexpr,
            BM: tl.constexpr, BE: tl.constexpr, FITS: tl.constexpr):  # fmt: skip
    """mean and r ``[BM, 1]`` of rows; r is 0 of those that are not there."""
    mean = tl.zeros([BM], WIDE)
    if CENTERED:
        for e0 in tl.range(0, span(E, BE, FITS), BE):
            mean += tl.sum(chunk(tile, x, i_p, o_r, R, e0 + tl.arange(0, BE), E, WIDE, FITS), 1)
        mean = mean / E
    square = tl.zeros([BM], WIDE)
    for e0 in tl.range(0, span(E, BE, FITS), BE):
        o_e = e0 + tl.arange(0, BE)
        n = chunk(tile, x, i_p, o_r, R, o_e, E, WIDE, FITS) - mean[:, None]
        square += tl.sum(tl.where((o_e < E)[None, :], n * n, 0.0), 1)
    r = tl.where(o_r < R, tl.rsqrt(square / E + EPS), 0.0)
    return mean[:, None], r[:, None]


@triton.jit
def norm(
    x, weight, bias, y, R, E, STRIPS, LONG, EPS: tl.constexpr, CENTERED: tl.constexpr, FITS: tl.constexpr,
    WIDE: tl.constexpr, BM: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    i_p = tl.program_id(0) // STRIPS
    first = tl.program_id(0) % STRIPS * LONG
    for i_t in tl.range(first, first + LONG):
        o_r = i_t * BM + tl.arange(0, BM)
        tile = load(x, i_p, o_r, R, tl.arange(0, BE), E, WIDE) if FITS else 0
        mean, r = moments(tile, x, i_p, o_r, R, E, EPS, CENTERED, WIDE, BM, BE, FITS)
        for e0 in tl.range(0, span(E, BE, FITS), BE):
            o_e = e0 + tl.arange(0, BE)
            n = (chunk(tile, x, i_p, o_r, R, o_e, E, WIDE, FITS) - mean) * r
            if weight.data is not None:
                n = n * line(weight, i_p, o_e, E, WIDE)
            if bias.data is not None:
                n = n + line(bias, i_p, o_e, E, WIDE)
            store(y, n, i_p, o_r, R, o_e, E)


@triton.jit
def pulled(d, weight, i_p, o_e, E, WIDE: tl.constexpr):
    """g."""
    if weight.data is not None:
        d = d * line(weight, i_p, o_e, E, WIDE)
    return d


@triton.jit
def norm_backward(
    x, weight, dy, dx, rows, dweight, dbias, R, E, STRIPS, LONG, EPS: tl.constexpr, CENTERED: tl.constexpr,
    FITS: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """dx, and of each strip Σ dy n and Σ dy. ``rows [P, R, 4]`` takes what is known of rows that do not fit a tile."""
    i_p = tl.program_id(0) // STRIPS
    i_s = tl.program_id(0) % STRIPS
    first = i_s * LONG
    at = tl.arange(0, 1)
    if not FITS:
        for i_t in tl.range(first, first + LONG):
            o_r = i_t * BM + tl.arange(0, BM)
            mean, r = moments(0, x, i_p, o_r, R, E, EPS, CENTERED, WIDE, BM, BE, FITS)
            along, across = tl.zeros([BM], WIDE), tl.zeros([BM], WIDE)
            for e0 in tl.range(0, E, BE):
                o_e = e0 + tl.arange(0, BE)
                g = pulled(load(dy, i_p, o_r, R, o_e, E, WIDE), weight, i_p, o_e, E, WIDE)
                n = (load(x, i_p, o_r, R, o_e, E, WIDE) - mean) * r
                along += tl.sum(g, 1)
                across += tl.sum(g * n, 1)
            store(rows, mean, i_p, o_r, R, at, 4)
            store(rows, r, i_p, o_r, R, at + 1, 4)
            store(rows, (along / E)[:, None], i_p, o_r, R, at + 2, 4)
            store(rows, (across / E)[:, None], i_p, o_r, R, at + 3, 4)
        tl.debug_barrier()

    for e0 in tl.range(0, span(E, BE, FITS), BE):
        o_e = e0 + tl.arange(0, BE)
        scales, shifts = tl.zeros([BM, BE], WIDE), tl.zeros([BM, BE], WIDE)
        for i_t in tl.range(first, first + LONG):
            o_r = i_t * BM + tl.arange(0, BM)
            tile = load(x, i_p, o_r, R, o_e, E, WIDE)
            d = load(dy, i_p, o_r, R, o_e, E, WIDE)
            g = pulled(d, weight, i_p, o_e, E, WIDE)
            if FITS:
                mean, r = moments(tile, x, i_p, o_r, R, E, EPS, CENTERED, WIDE, BM, BE, FITS)
                n = (tile - mean) * r
                along = (tl.sum(g, 1) / E)[:, None]
                across = (tl.sum(g * n, 1) / E)[:, None]
            else:
                r = load(rows, i_p, o_r, R, at + 1, 4, WIDE)
                n = (tile - load(rows, i_p, o_r, R, at, 4, WIDE)) * r
                along = load(rows, i_p, o_r, R, at + 2, 4, WIDE)
                across = load(rows, i_p, o_r, R, at + 3, 4, WIDE)
            if dx.data is not None:
                if CENTERED:
                    g = g - along
                store(dx, r * (g - n * across), i_p, o_r, R, o_e, E)
            scales += d * n
            shifts += d
        if dweight.data is not None:
            store(dweight, tl.sum(scales, 0)[None, :], i_p, i_s + at, STRIPS, o_e, E)
        if dbias.data is not None:
            store(dbias, tl.sum(shifts, 0)[None, :], i_p, i_s + at, STRIPS, o_e, E)


def forward(x: Group, c: Group, *, eps: float, centered: bool = True) -> tuple[Tensor]:
    given, *rest = x
    assert given is not None
    parts = parted([given], rest)
    rows = parts.flat(given)
    assert rows is not None
    weight, bias = (lines(parts.shared(t)) for t in (*rest, None)[:2])
    y, call = rows.new_empty(rows.shape), Strips.of(rows, WIDEST)
    call.run(norm, lines(rows), weight, bias, lines(y), EPS=eps, CENTERED=centered, **call.fits)
    return (y.view(*parts.batch, given.shape[-1]),)


def backward(
    x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, eps: float, centered: bool = True
) -> list[Maybe]:
    given, *rest = x
    assert given is not None
    d = cotangent(dy[0], y[0])
    parts = parted([given, d], rest)
    rows, slope = parts.flat(given), parts.flat(d)
    assert rows is not None
    wanted = [need and t is not None for need, t in zip((*needs, False)[1:3], (*rest, None), strict=False)]
    call = Strips.of(rows, WIDEST_BACKWARD, any(wanted))
    dx = rows.new_empty(rows.shape) if needs[0] else None
    known = None if call.fits["FITS"] else call.new(call.R, 4)
    sums = call.new(call.strips, sum(wanted) * call.E) if any(wanted) else None
    pieces = iter(() if sums is None else sums.split(call.E, -1))
    dweight, dbias = (next(pieces) if want else None for want in wanted)
    args = (rows, parts.shared(rest[0]), slope, dx, known, dweight, dbias)
    call.run(norm_backward, *map(lines, args), EPS=eps, CENTERED=centered, **call.fits)
    found = iter(() if sums is None else call.total(sums).split(call.E, -1))
    moved = None if dx is None else parts.grad(dx.view(*parts.batch, call.E), given, True)
    grads = [parts.shared_grad(next(found), t, True) if want else None for want, t in zip(wanted, rest, strict=False)]
    fit = lambda g, t: None if g is None or t is None else g.to(t.dtype).contiguous()
    return [moved, *map(fit, grads, rest)]
