"""Logits of a tile, in base 2: s = log2(e) · (scale · q kᵀ + bias), and −∞ where a key is hidden.

``x`` holds the call's operands and constants as views, absent ones too; ``size`` its lengths and counts. A
program keeps of its rows their bounds, their slope and where its dense bias and its key begin: ``mask``.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .._philox import keep
from .._rows import product
from .._tile import View, start, store
from .walk import Tiles

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
INF: tl.constexpr = tl.constexpr(float("inf"))


class Operands(NamedTuple):
    """The views of a call; what it does not have is ABSENT."""

    q: View
    k: View
    v: View
    dense: View
    slopes: View
    lo: View
    hi: View
    key: View
    tiles: Tiles


class Outputs(NamedTuple):
    """out and lse, their tangents or cotangents."""

    out: View
    lse: View


class Size(NamedTuple):
    """M queries, N keys, H heads, R of them to a key head, and ``examples``, ``inner`` to each of the outer batch."""

    M: int
    N: int
    H: int
    R: int
    examples: int
    inner: int


class Shape(NamedTuple):
    """The constants of a tile, known when compiled: its sides, its features side by side, and how many chunks of them
    what a program makes has."""

    BM: Any
    BN: Any
    BK: Any
    BV: Any
    CHUNKS: Any


class Extent(NamedTuple):
    """The sizes of a dense bias; each is that of the call, or 1."""

    outer: int
    inner: int
    heads: int
    rows: int
    columns: int


class Numbers(NamedTuple):
    """``scale`` of q kᵀ; a lane below ``threshold`` is dropped, and what is kept grows by ``gain``."""

    scale: float
    threshold: int
    gain: float


@triton.jit
def bounds(x, size, i_b, o_m):
    """lo and hi of rows; those behind the last are taken for it."""
    o_m = tl.minimum(o_m, size.M - 1).to(tl.int64)
    i_b = i_b.to(tl.int64)
    lo = tl.zeros_like(o_m).to(tl.int32)
    hi = lo + size.N
    zero = tl.zeros([], tl.int32)
    if x.lo.data is not None:
        lo = tl.load(start(x.lo, i_b, zero, size.inner) + o_m * x.lo.row).to(tl.int32)
    if x.hi.data is not None:
        hi = tl.load(start(x.hi, i_b, zero, size.inner) + o_m * x.hi.row).to(tl.int32)
    return lo, hi


@triton.jit
def logits(
    q, k, x, size, numbers, lo, hi, i_b, i_h, o_m, keys, K: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, EDGE: tl.constexpr, PRECISION: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    """``[BM, BN]`` of rows of queries and of keys; without ``EDGE``, all keys lie within all bounds."""
    o_n = keys.n
    s = tl.zeros([BM, BN], tl.float32)
    s = product(q, k, s, K, BK, PRECISION, STRICT) * (numbers.scale * LOG2E)
    if x.slopes.data is not None:
        slope = tl.load(start(x.slopes, i_b, i_h, size.inner)).to(tl.float32) * LOG2E
        s -= slope * tl.abs(o_m[:, None] - o_n[None, :]).to(tl.float32)
    if x.dense.data is not None:
        m = tl.minimum(o_m, size.M - 1).to(tl.int64)
        n = tl.minimum(o_n, size.N - 1).to(tl.int64) if EDGE else o_n.to(tl.int64)
        dense = tl.load(start(x.dense, i_b, i_h, size.inner) + m[:, None] * x.dense.row + n[None, :] * x.dense.col)
        if x.dense.data.dtype.element_ty == tl.uint8:
            s = tl.where(dense != 0, s, -INF)
        else:
            dense = dense.to(tl.float32)
            s = tl.where(dense == -INF, -INF, s + dense * LOG2E)
    if EDGE:
        s = tl.where((o_n < size.N)[None, :], s, -INF)
        if x.lo.data is not None:
            s = tl.where(o_n[None, :] >= lo[:, None], s, -INF)
        if x.hi.data is not None:
            s = tl.where(o_n[None, :] < hi[:, None], s, -INF)
        if x.tiles.block > 0:
            s = tl.where(keys.shown, s, -INF)
    return s


@triton.jit
def marked(s, clean, sound):
    """Logits, NaN where a query that is not clean sees a key, or is seen by one that is not sound."""
    return tl.where((s == -INF) | (clean[:, None] & sound[None, :]), s, float("nan"))


@triton.jit
def kept(x, size, numbers, i_b, i_h, o_m, keys, BM: tl.constexpr, BN: tl.constexpr):
    """Which weights of a tile survive dropout."""
    p_key = start(x.key, i_b, tl.zeros([], tl.int32), size.inner)
    k0 = tl.load(p_key).to(tl.uint32)
    k1 = tl.load(p_key + x.key.col).to(tl.uint32)
    return keep(k0, k1, numbers.threshold, i_h, o_m, keys.eights, BM, BN)


@triton.jit
def put(y, out, lse, i_b, i_h, size, o_m, V: tl.constexpr, BV: tl.constexpr, f0):
    """out, of the features from f0 on, and lse of rows, or their tangents."""
    store(start(y.out, i_b, i_h, size.inner), y.out, out, o_m, size.M, V, BV, f0)
    p_lse = start(y.lse, i_b, i_h, size.inner)
    tl.store(p_lse + o_m.to(tl.int64) * y.lse.row, lse, mask=(o_m < size.M) & (f0 == 0))
