"""The tangents of out and lse, in one pass. With ṡ = scale (q̇ kᵀ + q k̇ᵀ) + ḃ and ⟨ṡ⟩ = rowsum(P ∘ ṡ):

tout = (D ∘ P ∘ ṡ) v + (P ∘ D) v̇ − ⟨ṡ⟩ out,  tlse = ⟨ṡ⟩
"""

import triton
import triton.language as tl

from .._rows import chunk, product, rows
from .._tile import load, start, whole, within
from .gradient import reach
from .logits import INF, bounds, kept, logits, marked, put
from .walk import keys_at, over_keys, own_queries, stretch


@triton.jit
def moves(
    t, still, i_b, i_h, INNER, o_r, ROWS, F: tl.constexpr, BF: tl.constexpr, STRICT: tl.constexpr,
    EDGE: tl.constexpr = True,
):  # fmt: skip
    """Rows of a tangent; where there is none, those of its operand, which nobody takes for it."""
    found = still
    if t.data is not None:
        found = rows(t, i_b, i_h, INNER, o_r, ROWS, F, BF, STRICT, EDGE)
    return found


@triton.jit
def moved(
    q, k, tq, tk, t, size, numbers, i_b, i_h, o_m, o_n, K: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, PRECISION: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    """ṡ ``[BM, BN]``."""
    s = tl.zeros([BM, BN], tl.float32)
    if t.q.data is not None:
        s = product(tq, k, s, K, BK, PRECISION, STRICT)
    if t.k.data is not None:
        s = product(q, tk, s, K, BK, PRECISION, STRICT)
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
    x, t, y, ty, leaked, size, numbers,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, CHUNKS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    if STRICT:  # noqa: SIM102 - known when compiled, and only then is there something to load
        if tl.load(leaked + pid) == 0:
            return
    f0 = pid % CHUNKS * BV
    i_b, i_h, m0, o_m = own_queries(pid // CHUNKS, x, size, BM)
    i_g = i_h // size.R
    q = rows(x.q, i_b, i_h, size.inner, o_m, size.M, K, BK, STRICT)  # [BM, BK]
    tq = moves(t.q, q, i_b, i_h, size.inner, o_m, size.M, K, BK, STRICT)
    reach_m = reach(y.lse, i_b, i_h, size, o_m)
    lo, hi = bounds(x, size, i_b, o_m)
    walk = over_keys(x, size, i_b, i_h, m0, lo, hi, BN)

    mean = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BV], tl.float32)
    for phase in tl.static_range(3):
        begin, end = stretch(walk, phase)
        if phase > 0 or x.lo.data is not None:
            for v0 in tl.range(begin, end, BN):
                met = keys_at(x, size, walk, v0, i_b, i_h, o_m, BM, BN, phase)
                k = rows(x.k, i_b, i_g, size.inner, met.n, size.N, K, BK, STRICT, phase != 1)
                v = rows(x.v, i_b, i_g, size.inner, met.n, size.N, V, BV, STRICT, phase != 1)
                tk = moves(t.k, k, i_b, i_g, size.inner, met.n, size.N, K, BK, STRICT, phase != 1)
                tv = moves(t.v, v, i_b, i_g, size.inner, met.n, size.N, V, BV, STRICT, phase != 1)
                s = logits(
                    q, k, x, size, numbers, lo, hi, i_b, i_h, o_m, met, K, BK, BM, BN, phase != 1, PRECISION, STRICT
                )
                if STRICT:
                    s = marked(s, q.good & tq.good, k.good & v.good & tk.good & tv.good)
                P = tl.exp2(s - reach_m[:, None])
                move = moved(q, k, tq, tk, t, size, numbers, i_b, i_h, o_m, met.n, K, BK, BM, BN, PRECISION, STRICT)
                move = P * move
                if STRICT:
                    P = tl.where(s == -INF, 0.0, P)
                    move = tl.where(s == -INF, 0.0, move)
                mean += tl.sum(move, 1)
                if x.key.data is not None:
                    keeps = kept(x, size, numbers, i_b, i_h, o_m, met, BM, BN)
                    P = tl.where(keeps, P * numbers.gain, 0.0)
                    move = tl.where(keeps, move * numbers.gain, 0.0)
                mixed = chunk(v, f0, V, BV, STRICT)
                acc = tl.dot(move.to(mixed.dtype), mixed, acc, input_precision=PRECISION)
                if t.v.data is not None:
                    mixed = chunk(tv, f0, V, BV, STRICT)
                    acc = tl.dot(P.to(mixed.dtype), mixed, acc, input_precision=PRECISION)
    o = load(start(y.out, i_b, i_h, size.inner), y.out, o_m, size.M, V, BV, True, f0).to(tl.float32)
    acc = acc - mean[:, None] * o
    put(ty, acc, mean, i_b, i_h, size, o_m, V, BV, f0)
    if not STRICT and leaked is not None:
        tl.store(leaked + pid, 1 - whole(acc, within(o_m, size.M, V, BV, f0)))
