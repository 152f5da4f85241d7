"""How gradients move along a tangent. With c = ṡ − ⟨ṡ⟩, of which ⟨ṡ⟩ = tlse is given, δ as for the gradients, and
δ̇ = ḋout · out + dout · tout − ḋlse:

    Ẏ = D ∘ (ḋout vᵀ + dout v̇ᵀ),  dS = P ∘ (Y − δ),  ḋS = P ∘ (c ∘ (Y − δ) + Ẏ − δ̇)
    scale (ḋS k + dS k̇),  scale (ḋSᵀ q + dSᵀ q̇),  (P ∘ c ∘ D)ᵀ dout + (P ∘ D)ᵀ ḋout,  ḋS,  −Σ ḋS |m − n|

The three sums are those of the gradients. So much is multiplied here that the
keys are one run, in which every coefficient is compared with its bounds.
"""

import triton
import triton.language as tl

from .._rows import chunk, product, rows
from .._tile import start, store, whole, within
from .gradient import owner, reach, row, seen, settle, sharer, sharers
from .logits import INF, bounds, kept, logits, marked
from .tangent import moved
from .walk import along, keys_anywhere, keys_at, keys_from, over_keys, over_queries, own_keys, own_queries


@triton.jit
def queries(
    x, t, dy, tdy, size, i_b, i_h, o_m,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    """Rows of q, q̇, dout and ḋout; an absent one is another name of q."""
    q = rows(x.q, i_b, i_h, size.inner, o_m, size.M, K, BK, STRICT)
    tq, do, tdo = q, q, q
    if t.q.data is not None:
        tq = rows(t.q, i_b, i_h, size.inner, o_m, size.M, K, BK, STRICT)
    if dy.out.data is not None:
        do = rows(dy.out, i_b, i_h, size.inner, o_m, size.M, V, BV, STRICT)
    if tdy.out.data is not None:
        tdo = rows(tdy.out, i_b, i_h, size.inner, o_m, size.M, V, BV, STRICT)
    return q, tq, do, tdo


@triton.jit
def keys(
    x, t, size, i_b, i_g, o_n,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    """Rows of k, k̇, v and v̇; an absent tangent is another name of what would move."""
    k = rows(x.k, i_b, i_g, size.inner, o_n, size.N, K, BK, STRICT)
    v = rows(x.v, i_b, i_g, size.inner, o_n, size.N, V, BV, STRICT)
    tk, tv = k, v
    if t.k.data is not None:
        tk = rows(t.k, i_b, i_g, size.inner, o_n, size.N, K, BK, STRICT)
    if t.v.data is not None:
        tv = rows(t.v, i_b, i_g, size.inner, o_n, size.N, V, BV, STRICT)
    return k, tk, v, tv


@triton.jit
def curve(
    q, tq, do, tdo, k, tk, v, tv, x, t, y, ty, dy, tdy, delta, tdelta, size, numbers, lo, hi, i_b, i_h, o_m, met,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    """P ∘ D, P ∘ c ∘ D, dS and ḋS of a tile."""
    s = logits(q, k, x, size, numbers, lo, hi, i_b, i_h, o_m, met, K, BK, BM, BN, True, PRECISION, STRICT)
    if STRICT:
        s = marked(s, q.good & tq.good & do.good & tdo.good, k.good & tk.good & v.good & tv.good)
    P = tl.exp2(s - reach(y.lse, i_b, i_h, size, o_m)[:, None])
    tP = moved(q, k, tq, tk, t, size, numbers, i_b, i_h, o_m, met.n, K, BK, BM, BN, PRECISION, STRICT)
    tP = P * (tP - row(ty.lse, i_b, i_h, size, o_m)[:, None])
    Y, tY = tl.zeros([BM, BN], tl.float32), tl.zeros([BM, BN], tl.float32)
    if dy.out.data is not None:
        Y = product(do, v, Y, V, BV, PRECISION, STRICT)
        if t.v.data is not None:
            tY = product(do, tv, tY, V, BV, PRECISION, STRICT)
    if tdy.out.data is not None:
        tY = product(tdo, v, tY, V, BV, PRECISION, STRICT)
    if STRICT:
        P = tl.where(s == -INF, 0.0, P)
        tP = tl.where(s == -INF, 0.0, tP)
    dropped, tdropped = P, tP
    if x.key.data is not None:
        keeps = kept(x, size, numbers, i_b, i_h, o_m, met, BM, BN)
        dropped = tl.where(keeps, P * numbers.gain, 0.0)
        tdropped = tl.where(keeps, tP * numbers.gain, 0.0)
        Y = tl.where(keeps, Y * numbers.gain, 0.0)
        tY = tl.where(keeps, tY * numbers.gain, 0.0)
    X = Y - delta[:, None]
    dS = P * X
    tdS = tP * X + P * (tY - tdelta[:, None])
    if STRICT:
        dS = tl.where(s == -INF, 0.0, dS)
        tdS = tl.where(s == -INF, 0.0, tdS)
    return dropped, tdropped, dS, tdS


@triton.jit
def turn_queries(
    pid, x, t, y, ty, dy, tdy, delta, tdelta, dq, dslopes, size, numbers, K: tl.constexpr, V: tl.constexpr, tile,
    PRECISION: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    BM: tl.constexpr = tile.BM
    BN: tl.constexpr = tile.BN
    BK: tl.constexpr = tile.BK
    BV: tl.constexpr = tile.BV
    f0 = pid % tile.CHUNKS * BK
    i_b, i_h, m0, o_m = own_queries(pid // tile.CHUNKS, x, size, BM)
    i_g = i_h // size.R
    delta_m, tdelta_m = row(delta, i_b, i_h, size, o_m), row(tdelta, i_b, i_h, size, o_m)
    q, tq, do, tdo = queries(x, t, dy, tdy, size, i_b, i_h, o_m, K, V, BK, BV, STRICT)
    lo, hi = bounds(x, size, i_b, o_m)
    walk = over_keys(x, size, i_b, i_h, m0, lo, hi, BN)

    acc = tl.zeros([BM, BK], tl.float32)
    bent = tl.zeros([BM], tl.float32)
    for v0 in tl.range(walk.least, walk.most, BN):
        met = keys_at(x, size, walk, v0, i_b, i_h, o_m, BM, BN, 2)
        k, tk, v, tv = keys(x, t, size, i_b, i_g, met.n, K, V, BK, BV, STRICT)
        _, _, dS, tdS = curve(
            q, tq, do, tdo, k, tk, v, tv, x, t, y, ty, dy, tdy, delta_m, tdelta_m, size, numbers, lo, hi, i_b, i_h,
            o_m, met, K, V, BK, BV, BM, BN, PRECISION, STRICT,
        )  # fmt: skip
        mixed = chunk(k, f0, K, BK, STRICT)
        acc = tl.dot(tdS.to(mixed.dtype), mixed, acc, input_precision=PRECISION)
        if t.k.data is not None:
            mixed = chunk(tk, f0, K, BK, STRICT)
            acc = tl.dot(dS.to(mixed.dtype), mixed, acc, input_precision=PRECISION)
        if dslopes.data is not None:
            bent -= tl.sum(tdS * tl.abs(o_m[:, None] - met.n[None, :]).to(tl.float32), 1)
    acc = acc * numbers.scale
    store(start(dq, i_b, i_h, size.inner), dq, acc, o_m, size.M, K, BK, f0)
    if dslopes.data is not None:
        p_slopes = start(dslopes, i_b, i_h, size.inner)
        tl.store(p_slopes + o_m.to(tl.int64) * dslopes.row, bent, mask=(o_m < size.M) & (f0 == 0))
    return whole(acc, within(o_m, size.M, K, BK, f0))


@triton.jit
def turn_keys(
    pid, x, t, y, ty, dy, tdy, delta, tdelta, dk, dv, size, numbers, K: tl.constexpr, V: tl.constexpr, tile,
    PRECISION: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    BM: tl.constexpr = tile.BM
    BN: tl.constexpr = tile.BN
    BK: tl.constexpr = tile.BK
    BV: tl.constexpr = tile.BV
    i_f = pid % tile.CHUNKS
    i_b, i_g, n0, o_n = own_keys(pid // tile.CHUNKS, x, size, BN)
    k, tk, v, tv = keys(x, t, size, i_b, i_g, o_n, K, V, BK, BV, STRICT)
    first, last = seen(x, size, i_b, n0, BN)

    acc_k = tl.zeros([BN, BK], tl.float32)
    acc_v = tl.zeros([BN, BV], tl.float32)
    for i_r in tl.range(0, size.R):
        i_h = i_g * size.R + i_r
        walk = over_queries(x, size, i_b, i_h, n0, first, last, BM)
        for v0 in tl.range(walk.least, walk.most, BM):
            o_m = along(x, walk, v0, size.M, BM, 1, True)
            met = keys_from(x, size, n0, o_n, i_b, i_h, o_m, BM, BN, 2)
            q, tq, do, tdo = queries(x, t, dy, tdy, size, i_b, i_h, o_m, K, V, BK, BV, STRICT)
            lo, hi = bounds(x, size, i_b, o_m)
            dropped, tdropped, dS, tdS = curve(
                q, tq, do, tdo, k, tk, v, tv, x, t, y, ty, dy, tdy, row(delta, i_b, i_h, size, o_m),
                row(tdelta, i_b, i_h, size, o_m), size, numbers, lo, hi, i_b, i_h, o_m, met,
                K, V, BK, BV, BM, BN, PRECISION, STRICT,
            )  # fmt: skip
            if dv.data is not None:
                if dy.out.data is not None:
                    mixed = chunk(do, i_f * BV, V, BV, STRICT)
                    acc_v = tl.dot(tl.trans(tdropped.to(mixed.dtype)), mixed, acc_v, input_precision=PRECISION)
                if tdy.out.data is not None:
                    mixed = chunk(tdo, i_f * BV, V, BV, STRICT)
                    acc_v = tl.dot(tl.trans(dropped.to(mixed.dtype)), mixed, acc_v, input_precision=PRECISION)
            if dk.data is not None:
                mixed = chunk(q, i_f * BK, K, BK, STRICT)
                acc_k = tl.dot(tl.trans(tdS.to(mixed.dtype)), mixed, acc_k, input_precision=PRECISION)
                if t.q.data is not None:
                    mixed = chunk(tq, i_f * BK, K, BK, STRICT)
                    acc_k = tl.dot(tl.trans(dS.to(mixed.dtype)), mixed, acc_k, input_precision=PRECISION)
    acc_k = acc_k * numbers.scale
    if dk.data is not None:
        store(start(dk, i_b, i_g, size.inner), dk, acc_k, o_n, size.N, K, BK, i_f * BK)
    if dv.data is not None:
        store(start(dv, i_b, i_g, size.inner), dv, acc_v, o_n, size.N, V, BV, i_f * BV)
    fine = whole(acc_k, within(o_n, size.N, K, BK, i_f * BK))
    return fine * whole(acc_v, within(o_n, size.N, V, BV, i_f * BV))


@triton.jit(do_not_specialize=["columns"])
def turn(
    x, t, y, ty, dy, tdy, delta, tdelta, dq, dslopes, dk, dv, leaked, size, numbers, columns, of_queries, of_keys,
    K: tl.constexpr, V: tl.constexpr, PRECISION: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    """As ``gradient``."""
    pid = tl.program_id(0)
    if STRICT:  # noqa: SIM102 - known when compiled, and only then is there something to load
        if tl.load(leaked + pid) == 0:
            return
    if of_keys is not None and (of_queries is None or pid < columns):
        fine = turn_keys(
            pid, x, t, y, ty, dy, tdy, delta, tdelta, dk, dv, size, numbers, K, V, of_keys, PRECISION, STRICT
        )
    else:
        fine = turn_queries(
            pid - columns, x, t, y, ty, dy, tdy, delta, tdelta, dq, dslopes, size, numbers, K, V, of_queries,
            PRECISION, STRICT,
        )  # fmt: skip
    if not STRICT and leaked is not None:
        tl.store(leaked + pid, 1 - fine)


@triton.jit
def turn_bias(
    x, t, y, ty, dy, tdy, delta, tdelta, dense, extent, size, numbers,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, CHUNKS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    at = owner(tl.program_id(0), extent, BM, BN)
    acc = tl.zeros([BM, BN], tl.float32)
    for step in tl.range(0, sharers(size, extent, BM, BN)):
        i_b, i_h, m0, n0 = sharer(step, at, size, extent, BM, BN)
        o_m = m0 + tl.arange(0, BM)
        met, some = keys_anywhere(x, size, n0, i_b, i_h, o_m, BM, BN)
        if some:
            q, tq, do, tdo = queries(x, t, dy, tdy, size, i_b, i_h, o_m, K, V, BK, BV, True)
            k, tk, v, tv = keys(x, t, size, i_b, i_h // size.R, met.n, K, V, BK, BV, True)
            lo, hi = bounds(x, size, i_b, o_m)
            _, _, _, tdS = curve(
                q, tq, do, tdo, k, tk, v, tv, x, t, y, ty, dy, tdy, row(delta, i_b, i_h, size, o_m),
                row(tdelta, i_b, i_h, size, o_m), size, numbers, lo, hi, i_b, i_h, o_m, met,
                K, V, BK, BV, BM, BN, PRECISION, True,
            )  # fmt: skip
            acc += tdS
    settle(dense, acc, at, size, extent, BM, BN)
