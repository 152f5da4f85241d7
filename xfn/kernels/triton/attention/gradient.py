"""Gradients, recomputed tile by tile from lse. With P = softmax(s), D the dropout factors and δ = dout · out − dlse:

    Y = D ∘ (dout vᵀ),  dS = P ∘ (Y − δ)
    dq = scale dS k,  dk = scale dSᵀ q,  dv = (P ∘ D)ᵀ dout,  dbias = dS,  dslopes = −Σ dS |m − n|

``deltas`` comes first. ``gradient`` is one launch of programs of two kinds: ``by_keys`` sums over queries and over the
heads that share a key head, ``by_queries`` over keys. ``by_bias`` sums over whatever shares a coefficient. Each number
is summed by one program in one order.
"""

import triton
import triton.language as tl

from .._rows import chunk, dots, product, rows
from .._tile import start, store, turn, whole, within
from .logits import INF, LOG2E, bounds, kept, logits, marked
from .walk import along, keys_anywhere, keys_at, keys_from, over_keys, over_queries, own_keys, own_queries, stretch


@triton.jit
def row(t, i_b, i_h, size, o_m):
    """Numbers ``[BM]`` of rows, zero behind the last."""
    return tl.load(start(t, i_b, i_h, size.inner) + o_m.to(tl.int64) * t.row, mask=o_m < size.M, other=0.0)


@triton.jit
def reach(lse, i_b, i_h, size, o_m):
    """lse in base 2, ∞ for rows that see nothing, whose weights are then 0."""
    found = row(lse, i_b, i_h, size, o_m) * LOG2E
    return tl.where((found == -INF) | (o_m >= size.M), INF, found)


@triton.jit
def slope(
    q, k, v, do, dy, reach_m, delta, x, size, numbers, lo, hi, i_b, i_h, o_m, met,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    EDGE: tl.constexpr, PRECISION: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    """P ∘ D and dS of a tile."""
    s = logits(q, k, x, size, numbers, lo, hi, i_b, i_h, o_m, met, K, BK, BM, BN, EDGE, PRECISION, STRICT)
    if STRICT:
        s = marked(s, q.good & do.good, k.good & v.good)
    P = tl.exp2(s - reach_m[:, None])
    Y = tl.zeros([BM, BN], tl.float32)
    if dy.out.data is not None:
        Y = product(do, v, Y, V, BV, PRECISION, STRICT)
    if STRICT:
        P = tl.where(s == -INF, 0.0, P)
    dropped = P
    if x.key.data is not None:
        keeps = kept(x, size, numbers, i_b, i_h, o_m, met, BM, BN)
        dropped = tl.where(keeps, P * numbers.gain, 0.0)
        Y = tl.where(keeps, Y * numbers.gain, 0.0)
    dS = P * (Y - delta[:, None])
    if STRICT:
        dS = tl.where(s == -INF, 0.0, dS)
    return dropped, dS


@triton.jit
def pairing(a, b, found, size, i_b, i_h, o_m, V: tl.constexpr, BV: tl.constexpr):
    """found + rowsum(a ∘ b), of tensors that are there."""
    if a.data is not None and b.data is not None:
        left = rows(a, i_b, i_h, size.inner, o_m, size.M, V, BV, False)
        found = dots(left, rows(b, i_b, i_h, size.inner, o_m, size.M, V, BV, False), found, V, BV)
    return found


@triton.jit
def leave(t, found, lse, i_b, i_h, size, o_m):
    """Numbers of rows, less a cotangent of lse, where others find them."""
    if lse.data is not None:
        found -= row(lse, i_b, i_h, size, o_m)
    tl.store(start(t, i_b, i_h, size.inner) + o_m.to(tl.int64) * t.row, found, mask=o_m < size.M)


@triton.jit
def deltas(
    y, dy, ty, tdy, delta, tdelta, size, numbers,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, CHUNKS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """δ of a tile of queries, and, where outputs move, its tangent."""
    i_m, i_bh = turn(tl.program_id(0), tl.cdiv(size.M, BM), size.examples * size.H)
    i_b, i_h, o_m = i_bh // size.H, i_bh % size.H, i_m * BM + tl.arange(0, BM)
    nothing = tl.zeros([BM], tl.float32)
    leave(delta, pairing(dy.out, y.out, nothing, size, i_b, i_h, o_m, V, BV), dy.lse, i_b, i_h, size, o_m)
    if tdelta is not None:
        found = pairing(tdy.out, y.out, nothing, size, i_b, i_h, o_m, V, BV)
        leave(tdelta, pairing(dy.out, ty.out, found, size, i_b, i_h, o_m, V, BV), tdy.lse, i_b, i_h, size, o_m)


@triton.jit
def by_queries(
    pid, x, y, dy, delta, dq, dslopes, size, numbers, K: tl.constexpr, V: tl.constexpr, tile,
    PRECISION: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    """dq of a tile, a chunk of its features, and its share of dslopes; whether they are finite."""
    BM: tl.constexpr = tile.BM
    BN: tl.constexpr = tile.BN
    BK: tl.constexpr = tile.BK
    BV: tl.constexpr = tile.BV
    f0 = pid % tile.CHUNKS * BK
    i_b, i_h, m0, o_m = own_queries(pid // tile.CHUNKS, x, size, BM)
    i_g = i_h // size.R
    q = rows(x.q, i_b, i_h, size.inner, o_m, size.M, K, BK, STRICT)  # [BM, BK]
    do = q
    if dy.out.data is not None:
        do = rows(dy.out, i_b, i_h, size.inner, o_m, size.M, V, BV, STRICT)  # [BM, BV]
    reach_m, delta_m = reach(y.lse, i_b, i_h, size, o_m), row(delta, i_b, i_h, size, o_m)
    lo, hi = bounds(x, size, i_b, o_m)
    walk = over_keys(x, size, i_b, i_h, m0, lo, hi, BN)

    acc = tl.zeros([BM, BK], tl.float32)
    bent = tl.zeros([BM], tl.float32)
    for phase in tl.static_range(3):
        begin, end = stretch(walk, phase)
        if phase > 0 or x.lo.data is not None:
            for v0 in tl.range(begin, end, BN):
                met = keys_at(x, size, walk, v0, i_b, i_h, o_m, BM, BN, phase)
                k = rows(x.k, i_b, i_g, size.inner, met.n, size.N, K, BK, STRICT, phase != 1)
                v = rows(x.v, i_b, i_g, size.inner, met.n, size.N, V, BV, STRICT, phase != 1)
                _, dS = slope(
                    q, k, v, do, dy, reach_m, delta_m, x, size, numbers, lo, hi, i_b, i_h, o_m, met,
                    K, V, BK, BV, BM, BN, phase != 1, PRECISION, STRICT,
                )  # fmt: skip
                mixed = chunk(k, f0, K, BK, STRICT)
                acc = tl.dot(dS.to(mixed.dtype), mixed, acc, input_precision=PRECISION)
                if dslopes.data is not None:
                    bent -= tl.sum(dS * tl.abs(o_m[:, None] - met.n[None, :]).to(tl.float32), 1)
    acc = acc * numbers.scale
    store(start(dq, i_b, i_h, size.inner), dq, acc, o_m, size.M, K, BK, f0)
    if dslopes.data is not None:
        p_slopes = start(dslopes, i_b, i_h, size.inner)
        tl.store(p_slopes + o_m.to(tl.int64) * dslopes.row, bent, mask=(o_m < size.M) & (f0 == 0))
    return whole(acc, within(o_m, size.M, K, BK, f0))


@triton.jit
def seen(x, size, i_b, n0, BN: tl.constexpr):
    """The first query that sees one of the keys n0 … n0 + BN, and the one behind the last."""
    first, last = 0, size.M
    if x.lo.data is not None or x.hi.data is not None:
        first, last = size.M, 0
        for m0 in tl.range(0, size.M, 1024):
            o_m = m0 + tl.arange(0, 1024)
            lo, hi = bounds(x, size, i_b, o_m)
            meets = (o_m < size.M) & (lo < n0 + BN) & (hi > n0) & (lo < hi)
            first = tl.minimum(first, tl.min(tl.where(meets, o_m, size.M)))
            last = tl.maximum(last, tl.max(tl.where(meets, o_m + 1, 0)))
    return first, last


@triton.jit
def by_keys(
    pid, x, y, dy, delta, dk, dv, size, numbers, K: tl.constexpr, V: tl.constexpr, tile,
    PRECISION: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    """dk and dv of a tile, a chunk of the features of each; whether they are finite."""
    BM: tl.constexpr = tile.BM
    BN: tl.constexpr = tile.BN
    BK: tl.constexpr = tile.BK
    BV: tl.constexpr = tile.BV
    i_f = pid % tile.CHUNKS
    i_b, i_g, n0, o_n = own_keys(pid // tile.CHUNKS, x, size, BN)
    k = rows(x.k, i_b, i_g, size.inner, o_n, size.N, K, BK, STRICT)  # [BN, BK]
    v = rows(x.v, i_b, i_g, size.inner, o_n, size.N, V, BV, STRICT)  # [BN, BV]
    first, last = seen(x, size, i_b, n0, BN)
    LOOSE: tl.constexpr = x.lo.data is None and x.hi.data is None
    CUT: tl.constexpr = x.tiles.words.data is not None or not LOOSE

    acc_k = tl.zeros([BN, BK], tl.float32)
    acc_v = tl.zeros([BN, BV], tl.float32)
    for i_r in tl.range(0, size.R):
        i_h = i_g * size.R + i_r
        walk = over_queries(x, size, i_b, i_h, n0, first, last, BM)
        for phase in tl.static_range(1, 3):
            begin, end = stretch(walk, phase)
            if LOOSE if phase == 1 else CUT:
                for v0 in tl.range(begin, end, BM):
                    o_m = along(x, walk, v0, size.M, BM, 1, phase == 2)
                    met = keys_from(x, size, n0, o_n, i_b, i_h, o_m, BM, BN, phase)
                    q = rows(x.q, i_b, i_h, size.inner, o_m, size.M, K, BK, STRICT)  # [BM, BK]
                    do = q
                    if dy.out.data is not None:
                        do = rows(dy.out, i_b, i_h, size.inner, o_m, size.M, V, BV, STRICT)  # [BM, BV]
                    lo, hi = bounds(x, size, i_b, o_m)
                    dropped, dS = slope(
                        q, k, v, do, dy, reach(y.lse, i_b, i_h, size, o_m), row(delta, i_b, i_h, size, o_m), x, size,
                        numbers, lo, hi, i_b, i_h, o_m, met, K, V, BK, BV, BM, BN,
                        phase == 2 or x.dense.data is not None, PRECISION, STRICT,
                    )  # fmt: skip
                    if dv.data is not None and dy.out.data is not None:
                        mixed = chunk(do, i_f * BV, V, BV, STRICT)
                        acc_v = tl.dot(tl.trans(dropped.to(mixed.dtype)), mixed, acc_v, input_precision=PRECISION)
                    if dk.data is not None:
                        mixed = chunk(q, i_f * BK, K, BK, STRICT)
                        acc_k = tl.dot(tl.trans(dS.to(mixed.dtype)), mixed, acc_k, input_precision=PRECISION)
    acc_k = acc_k * numbers.scale
    if dk.data is not None:
        store(start(dk, i_b, i_g, size.inner), dk, acc_k, o_n, size.N, K, BK, i_f * BK)
    if dv.data is not None:
        store(start(dv, i_b, i_g, size.inner), dv, acc_v, o_n, size.N, V, BV, i_f * BV)
    fine = whole(acc_k, within(o_n, size.N, K, BK, i_f * BK))
    return fine * whole(acc_v, within(o_n, size.N, V, BV, i_f * BV))


@triton.jit(do_not_specialize=["columns"])
def gradient(
    x, y, dy, delta, dq, dslopes, dk, dv, leaked, size, numbers, columns, of_queries, of_keys,
    K: tl.constexpr, V: tl.constexpr, PRECISION: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    """The first programs, as many as ``columns``, make keys, and all others queries; one of both may be absent."""
    pid = tl.program_id(0)
    if STRICT:  # noqa: SIM102 - known when compiled, and only then is there something to load
        if tl.load(leaked + pid) == 0:
            return
    if of_keys is not None and (of_queries is None or pid < columns):
        fine = by_keys(pid, x, y, dy, delta, dk, dv, size, numbers, K, V, of_keys, PRECISION, STRICT)
    else:
        pid_m = pid - columns
        fine = by_queries(pid_m, x, y, dy, delta, dq, dslopes, size, numbers, K, V, of_queries, PRECISION, STRICT)
    if not STRICT and leaked is not None:
        tl.store(leaked + pid, 1 - fine)


@triton.jit
def owner(pid, extent, BM: tl.constexpr, BN: tl.constexpr):
    """Which tile ``[BM, BN]`` of a dense bias a program has: of which of the outer batch, the inner one and the heads,
    in which row and column of tiles."""
    m_tiles, n_tiles = tl.cdiv(extent.rows, BM), tl.cdiv(extent.columns, BN)
    i_n = pid % n_tiles
    i_m = pid // n_tiles % m_tiles
    i_h = pid // (n_tiles * m_tiles) % extent.heads
    i_i = pid // (n_tiles * m_tiles * extent.heads) % extent.inner
    return pid // (n_tiles * m_tiles * extent.heads * extent.inner), i_i, i_h, i_m, i_n


@triton.jit
def lengths(size, extent, BM: tl.constexpr, BN: tl.constexpr):
    """How many tiles of rows and of columns share one of the bias."""
    over_m = tl.where(extent.rows == size.M, 1, tl.cdiv(size.M, BM))
    return over_m, tl.where(extent.columns == size.N, 1, tl.cdiv(size.N, BN))


@triton.jit
def sharers(size, extent, BM: tl.constexpr, BN: tl.constexpr):
    """How many tiles share one of the bias, over all that is 1 there and is not in the call."""
    over_m, over_n = lengths(size, extent, BM, BN)
    return size.examples // (extent.outer * extent.inner) * (size.H // extent.heads) * over_m * over_n


@triton.jit
def sharer(step, at, size, extent, BM: tl.constexpr, BN: tl.constexpr):
    """One of those that share the tile ``at``: its example, its head, its first row and column."""
    i_o, i_i, i_h, i_m, i_n = at
    over_m, over_n = lengths(size, extent, BM, BN)
    over_i, over_h = size.inner // extent.inner, size.H // extent.heads
    n0 = (i_n + step % over_n) * BN
    m0 = (i_m + step // over_n % over_m) * BM
    i_h += step // (over_n * over_m) % over_h
    i_i += step // (over_n * over_m * over_h) % over_i
    i_o += step // (over_n * over_m * over_h * over_i)
    return i_o * size.inner + i_i, i_h, m0, n0


@triton.jit
def settle(dense, acc, at, size, extent, BM: tl.constexpr, BN: tl.constexpr):
    """A sum over those that share it to the tile ``at``."""
    i_o, i_i, i_h, i_m, i_n = at
    o_m, o_n = i_m * BM + tl.arange(0, BM), i_n * BN + tl.arange(0, BN)
    if extent.rows < size.M:
        acc = tl.where((tl.arange(0, BM) == 0)[:, None], tl.sum(acc, 0)[None, :], 0.0)
    if extent.columns < size.N:
        acc = tl.where((tl.arange(0, BN) == 0)[None, :], tl.sum(acc, 1)[:, None], 0.0)
    p = dense.data + i_o.to(tl.int64) * dense.outer + i_i.to(tl.int64) * dense.inner
    p += i_h.to(tl.int64) * dense.head
    p_dense = p + o_m.to(tl.int64)[:, None] * dense.row + o_n.to(tl.int64)[None, :] * dense.col
    inside = (o_m < extent.rows)[:, None] & (o_n < extent.columns)[None, :]
    tl.store(p_dense, acc.to(dense.data.dtype.element_ty), mask=inside)


@triton.jit
def by_bias(
    x, y, dy, delta, dense, extent, size, numbers,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, CHUNKS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of a dense bias, summed over all that shares it. What is hidden gets nothing, so there is nothing to
    clean."""
    at = owner(tl.program_id(0), extent, BM, BN)
    acc = tl.zeros([BM, BN], tl.float32)
    for step in tl.range(0, sharers(size, extent, BM, BN)):
        i_b, i_h, m0, n0 = sharer(step, at, size, extent, BM, BN)
        o_m = m0 + tl.arange(0, BM)
        met, some = keys_anywhere(x, size, n0, i_b, i_h, o_m, BM, BN)
        if some:
            q = rows(x.q, i_b, i_h, size.inner, o_m, size.M, K, BK, True)  # [BM, BK]
            k = rows(x.k, i_b, i_h // size.R, size.inner, met.n, size.N, K, BK, True)  # [BN, BK]
            v = rows(x.v, i_b, i_h // size.R, size.inner, met.n, size.N, V, BV, True)  # [BN, BV]
            do = q
            if dy.out.data is not None:
                do = rows(dy.out, i_b, i_h, size.inner, o_m, size.M, V, BV, True)  # [BM, BV]
            lo, hi = bounds(x, size, i_b, o_m)
            _, dS = slope(
                q, k, v, do, dy, reach(y.lse, i_b, i_h, size, o_m), row(delta, i_b, i_h, size, o_m), x, size, numbers,
                lo, hi, i_b, i_h, o_m, met, K, V, BK, BV, BM, BN, True, PRECISION, True,
            )  # fmt: skip
            acc += dS
    settle(dense, acc, at, size, extent, BM, BN)
