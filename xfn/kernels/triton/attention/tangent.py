"""The tangents of out and lse, in one pass. With ṡ = scale (q̇ kᵀ + q k̇ᵀ) + ḃ and ⟨ṡ⟩ = rowsum(P ∘ ṡ):

tout = (D ∘ P ∘ ṡ) v + (P ∘ D) v̇ − ⟨ṡ⟩ out,  tlse = ⟨ṡ⟩
"""

import triton
import triton.language as tl

from .._tile import load, sound, start, store, turn, whole, within
from .gradient import reach
from .logits import INF, bounds, kept, logits, marked, phases, stretch


@triton.jit
def moved(
    q, k, tq, tk, t, size, numbers, i_b, i_h, o_m, o_n, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """ṡ ``[BM, BN]``."""
    s = tl.zeros([BM, BN], tl.float32)
    if t.q.data is not None:
        s = tl.dot(tq, tl.trans(k), s, input_precision=PRECISION)
    if t.k.data is not None:
        s = tl.dot(q, tl.trans(tk), s, input_precision=PRECISION)
    s = s * numbers.scale
    if t.slopes.data is not None:
        slope = tl.load(start(t.slopes, i_b, i_h, size.inner)).to(tl.float32)
        s -= slope * tl.abs(o_m[:, None] - o_n[None, :]).to(tl.float32)
    if t.dense.data is not None:
        m = tl.minimum(o_m, size.M - 1).to(tl.int64)
        n = tl.minimum(o_n, size.N - 1).to(tl.int64)
        p = start(t.dense, i_b, i_h, size.inner)
        s += tl.load(p + m[:, None] * t.dense.row + n[None, :] * t.dense.col).to(tl.float32)
    return s


@triton.jit
def tangent(
    x, t, out, lse, tout, tlse, leaked, size, numbers,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    if STRICT:  # noqa: SIM102 - known when compiled, and only then is there something to load
        if tl.load(leaked + pid) == 0:
            return
    i_m, i_bh = turn(pid, tl.cdiv(size.M, BM), size.examples * size.H)
    i_b, i_h = i_bh // size.H, i_bh % size.H
    i_g = i_h // size.R
    o_m = i_m * BM + tl.arange(0, BM)
    q = load(start(x.q, i_b, i_h, size.inner), x.q, o_m, size.M, K, BK)  # [BM, BK]
    tq, clean = q, None
    if t.q.data is not None:
        tq = load(start(t.q, i_b, i_h, size.inner), t.q, o_m, size.M, K, BK)  # [BM, BK]
    if STRICT:
        clean = sound(q)
        if t.q.data is not None:
            clean = clean & sound(tq)
            tq = tl.where(clean[:, None], tq, 0.0)
        q = tl.where(clean[:, None], q, 0.0)
    reach_m = reach(lse, i_b, i_h, size, o_m)
    lo, hi = bounds(x, size, i_b, o_m)
    least, first, last, most = phases(x, size, lo, hi, BN)

    mean = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BV], tl.float32)
    for phase in tl.static_range(3):
        begin, end = stretch(phase, least, first, last, most)
        if phase > 0 or x.lo.data is not None:
            for n0 in tl.range(begin, end, BN):
                o_n = n0 + tl.arange(0, BN)
                k = load(start(x.k, i_b, i_g, size.inner), x.k, o_n, size.N, K, BK, phase != 1)
                v = load(start(x.v, i_b, i_g, size.inner), x.v, o_n, size.N, V, BV, phase != 1)
                tk, tv = k, v
                if t.k.data is not None:
                    tk = load(start(t.k, i_b, i_g, size.inner), t.k, o_n, size.N, K, BK, phase != 1)
                if t.v.data is not None:
                    tv = load(start(t.v, i_b, i_g, size.inner), t.v, o_n, size.N, V, BV, phase != 1)
                if STRICT:
                    good = sound(k) & sound(v)
                    if t.k.data is not None:
                        good = good & sound(tk)
                    if t.v.data is not None:
                        good = good & sound(tv)
                    k = tl.where(good[:, None], k, 0.0)
                    v = tl.where(good[:, None], v, 0.0)
                    if t.k.data is not None:
                        tk = tl.where(good[:, None], tk, 0.0)
                    if t.v.data is not None:
                        tv = tl.where(good[:, None], tv, 0.0)
                s = logits(q, k, x, size, numbers, lo, hi, i_b, i_h, o_m, o_n, phase != 1, PRECISION)
                if STRICT:
                    s = marked(s, clean, good)
                P = tl.exp2(s - reach_m[:, None])
                move = P * moved(q, k, tq, tk, t, size, numbers, i_b, i_h, o_m, o_n, BM, BN, PRECISION)
                if STRICT:
                    P = tl.where(s == -INF, 0.0, P)
                    move = tl.where(s == -INF, 0.0, move)
                mean += tl.sum(move, 1)
                if x.key.data is not None:
                    keeps = kept(x, size, numbers, i_b, i_h, o_m, n0, BM, BN)
                    P = tl.where(keeps, P * numbers.gain, 0.0)
                    move = tl.where(keeps, move * numbers.gain, 0.0)
                acc = tl.dot(move.to(v.dtype), v, acc, input_precision=PRECISION)
                if t.v.data is not None:
                    acc = tl.dot(P.to(v.dtype), tv, acc, input_precision=PRECISION)
    o = load(start(out, i_b, i_h, size.inner), out, o_m, size.M, V, BV).to(tl.float32)
    acc = acc - mean[:, None] * o
    store(start(tout, i_b, i_h, size.inner), tout, acc, o_m, size.M, V, BV)
    tl.store(start(tlse, i_b, i_h, size.inner) + o_m.to(tl.int64) * tlse.row, mean, mask=o_m < size.M)
    if not STRICT and leaked is not None:
        tl.store(leaked + pid, 1 - whole(acc, within(o_m, size.M, V, BV)))
