"""out and lse of a tile of queries, in one pass over the keys that it sees, with a running maximum m; in the same pass
their tangents, along a tangent ``t``. With W = 2^(s − m), l its sum, D what dropout keeps, and ṡ of ``tangent.py``,

T ← Σ (D ∘ W ∘ ṡ) v + (D ∘ W) v̇,  μ ← Σ W ∘ ṡ,  tout = T / l − μ / l out,  tlse = μ / l

What is hidden has weight 0, but 0 · NaN is NaN. A program whose results are not finite leaves word of it, and where
there is a mask a second launch, ``STRICT``, does those tiles again, with zeros for keys and queries that are not finite
and NaNs for the logits of those they may meet. What is not finite in a tangent spoils tangents alone: there the NaNs
are in place of W ∘ ṡ.
"""

import triton
import triton.language as tl

from .._rows import chunk, rows
from .._tile import whole, within
from .logits import INF, LN2, bounds, kept, logits, marked, put
from .tangent import moved, moves
from .walk import keys_at, over_keys, own_queries, stretch


@triton.jit
def forward(
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
    lo, hi = bounds(x, size, i_b, o_m)
    walk = over_keys(x, size, i_b, i_h, m0, lo, hi, BN)

    top = tl.full([BM], -INF, tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BV], tl.float32)
    if ty is not None:
        tq = moves(t.q, q, i_b, i_h, size.inner, o_m, size.M, K, BK, STRICT)
        mean = tl.zeros([BM], tl.float32)
        turned = tl.zeros([BM, BV], tl.float32)
    for phase in tl.static_range(3):
        begin, end = stretch(walk, phase)
        if phase > 0 or x.lo.data is not None:
            for v0 in tl.range(begin, end, BN):
                met = keys_at(x, size, walk, v0, i_b, i_h, o_m, BM, BN, phase)
                k = rows(x.k, i_b, i_g, size.inner, met.n, size.N, K, BK, STRICT, phase != 1)
                v = rows(x.v, i_b, i_g, size.inner, met.n, size.N, V, BV, STRICT, phase != 1)
                s = logits(
                    q, k, x, size, numbers, lo, hi, i_b, i_h, o_m, met, K, BK, BM, BN, phase != 1, PRECISION, STRICT
                )
                if STRICT:
                    s = marked(s, q.good, k.good & v.good)
                higher = tl.maximum(top, tl.max(s, 1))
                base = tl.where(higher == -INF, 0.0, higher)
                P = tl.exp2(s - base[:, None])
                shrink = tl.exp2(top - base)
                total = total * shrink + tl.sum(P, 1)
                if ty is not None:
                    tk = moves(t.k, k, i_b, i_g, size.inner, met.n, size.N, K, BK, STRICT, phase != 1)
                    tv = moves(t.v, v, i_b, i_g, size.inner, met.n, size.N, V, BV, STRICT, phase != 1)
                    move = moved(q, k, tq, tk, t, size, numbers, i_b, i_h, o_m, met.n, K, BK, BM, BN, PRECISION, STRICT)
                    move = P * move
                    if STRICT:
                        clean = tq.good[:, None] & (tk.good & tv.good)[None, :]
                        move = tl.where(s == -INF, 0.0, tl.where(clean, move, float("nan")))
                    mean = mean * shrink + tl.sum(move, 1)
                if x.key.data is not None:
                    keeps = kept(x, size, numbers, i_b, i_h, o_m, met, BM, BN)
                    P = tl.where(keeps, P, 0.0)
                    if ty is not None:
                        move = tl.where(keeps, move, 0.0)
                mixed = chunk(v, f0, V, BV, STRICT)
                acc = tl.dot(P.to(mixed.dtype), mixed, acc * shrink[:, None], input_precision=PRECISION)
                if ty is not None:
                    turned = tl.dot(move.to(mixed.dtype), mixed, turned * shrink[:, None], input_precision=PRECISION)
                    if t.v.data is not None:
                        mixed = chunk(tv, f0, V, BV, STRICT)
                        turned = tl.dot(P.to(mixed.dtype), mixed, turned, input_precision=PRECISION)
                top = higher
    some = total != 0
    total = tl.where(some, total, 1.0)
    acc = acc * (numbers.gain / total)[:, None]
    found = tl.where(some, (top + tl.log2(total)) * LN2, -INF)
    put(y, acc, found, i_b, i_h, size, o_m, V, BV, f0)
    inside = within(o_m, size.M, V, BV, f0)
    good = whole(acc, inside)
    if ty is not None:
        mean = mean / total
        turned = turned * (numbers.gain / total)[:, None] - mean[:, None] * acc
        put(ty, turned, mean, i_b, i_h, size, o_m, V, BV, f0)
        good = good & whole(turned, inside)
    if not STRICT and leaked is not None:
        tl.store(leaked + pid, 1 - good)
