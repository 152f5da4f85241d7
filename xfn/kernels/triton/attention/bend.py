"""The second tangents of out and lse, in one pass. With cᵤ = ṡᵤ − ⟨ṡᵤ⟩, of which ⟨ṡᵤ⟩ is given, c_w alike, and
σ = cᵤ ∘ c_w + scale (q̇ᵤ k̇_wᵀ + q̇_w k̇ᵤᵀ):

tout = (D ∘ P ∘ σ) v + (D ∘ P ∘ cᵤ) v̇_w + (D ∘ P ∘ c_w) v̇ᵤ − ⟨σ⟩ out,  tlse = ⟨σ⟩
"""

import triton
import triton.language as tl

from .._rows import chunk, product, rows
from .._tile import load, start, whole, within
from .gradient import reach, row
from .logits import INF, bounds, kept, logits, marked, put
from .tangent import moved, moves
from .walk import keys_at, over_keys, own_queries


@triton.jit
def bend(
    x, u, w, y, uy, wy, ty, leaked, size, numbers,
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
    uq = moves(u.q, q, i_b, i_h, size.inner, o_m, size.M, K, BK, STRICT)
    wq = moves(w.q, q, i_b, i_h, size.inner, o_m, size.M, K, BK, STRICT)
    reach_m = reach(y.lse, i_b, i_h, size, o_m)
    u_mean, w_mean = row(uy.lse, i_b, i_h, size, o_m), row(wy.lse, i_b, i_h, size, o_m)
    lo, hi = bounds(x, size, i_b, o_m)
    walk = over_keys(x, size, i_b, i_h, m0, lo, hi, BN)

    mean = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BV], tl.float32)
    for v0 in tl.range(walk.least, walk.most, BN):
        met = keys_at(x, size, walk, v0, i_b, i_h, o_m, BM, BN, 2)
        k = rows(x.k, i_b, i_g, size.inner, met.n, size.N, K, BK, STRICT)  # [BN, BK]
        v = rows(x.v, i_b, i_g, size.inner, met.n, size.N, V, BV, STRICT)  # [BN, BV]
        uk = moves(u.k, k, i_b, i_g, size.inner, met.n, size.N, K, BK, STRICT)
        wk = moves(w.k, k, i_b, i_g, size.inner, met.n, size.N, K, BK, STRICT)
        uv = moves(u.v, v, i_b, i_g, size.inner, met.n, size.N, V, BV, STRICT)
        wv = moves(w.v, v, i_b, i_g, size.inner, met.n, size.N, V, BV, STRICT)
        s = logits(q, k, x, size, numbers, lo, hi, i_b, i_h, o_m, met, K, BK, BM, BN, True, PRECISION, STRICT)
        if STRICT:
            s = marked(s, q.good & uq.good & wq.good, k.good & uk.good & wk.good & v.good & uv.good & wv.good)
        P = tl.exp2(s - reach_m[:, None])
        du = moved(q, k, uq, uk, u, size, numbers, i_b, i_h, o_m, met.n, K, BK, BM, BN, PRECISION, STRICT)
        dw = moved(q, k, wq, wk, w, size, numbers, i_b, i_h, o_m, met.n, K, BK, BM, BN, PRECISION, STRICT)
        du, dw = du - u_mean[:, None], dw - w_mean[:, None]
        cross = tl.zeros([BM, BN], tl.float32)
        if u.q.data is not None and w.k.data is not None:
            cross = product(uq, wk, cross, K, BK, PRECISION, STRICT)
        if w.q.data is not None and u.k.data is not None:
            cross = product(wq, uk, cross, K, BK, PRECISION, STRICT)
        bent = P * (du * dw + cross * numbers.scale)
        du, dw = P * du, P * dw
        if STRICT:
            bent = tl.where(s == -INF, 0.0, bent)
            du = tl.where(s == -INF, 0.0, du)
            dw = tl.where(s == -INF, 0.0, dw)
        mean += tl.sum(bent, 1)
        if x.key.data is not None:
            keeps = kept(x, size, numbers, i_b, i_h, o_m, met, BM, BN)
            bent = tl.where(keeps, bent * numbers.gain, 0.0)
            du = tl.where(keeps, du * numbers.gain, 0.0)
            dw = tl.where(keeps, dw * numbers.gain, 0.0)
        mixed = chunk(v, f0, V, BV, STRICT)
        acc = tl.dot(bent.to(mixed.dtype), mixed, acc, input_precision=PRECISION)
        if w.v.data is not None:
            mixed = chunk(wv, f0, V, BV, STRICT)
            acc = tl.dot(du.to(mixed.dtype), mixed, acc, input_precision=PRECISION)
        if u.v.data is not None:
            mixed = chunk(uv, f0, V, BV, STRICT)
            acc = tl.dot(dw.to(mixed.dtype), mixed, acc, input_precision=PRECISION)
    o = load(start(y.out, i_b, i_h, size.inner), y.out, o_m, size.M, V, BV, True, f0).to(tl.float32)
    acc = acc - mean[:, None] * o
    put(ty, acc, mean, i_b, i_h, size, o_m, V, BV, f0)
    if not STRICT and leaked is not None:
        tl.store(leaked + pid, 1 - whole(acc, within(o_m, size.M, V, BV, f0)))
