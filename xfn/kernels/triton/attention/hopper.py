"""What ``forward.py`` computes, on devices of compute capability 9.0, in Gluon; where nothing is added or dropped.

A program has 128 queries. One warp fetches tiles of keys and of values into two rings in shared memory, as far ahead as
there is room. Two groups of four warps take 64 queries each: a group multiplies them by the keys of one tile, and its
weights by the values of the tile before, and finds the next weights while the values are at work.
"""

from typing import Any, NamedTuple

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper as hw
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .._tile import View, start, turn
from .config import RINGS
from .forward import forward as again
from .launch import Launch, padded
from .logits import Outputs
from .walk import aligned

LOG2E: gl.constexpr = gl.constexpr(1.4426950408889634)
LN2: gl.constexpr = gl.constexpr(0.6931471805599453)
INF: gl.constexpr = gl.constexpr(float("inf"))
ROWS: gl.constexpr = gl.constexpr(64)
"""Queries of a group of warps."""


class Ring(NamedTuple):
    """Tiles in shared memory that take turns: ``full`` when one has come, ``free`` when no group needs it."""

    tiles: Any
    full: Any
    free: Any


class Corner(NamedTuple):
    """An example and a head, as a descriptor names them."""

    outer: Any
    inner: Any
    head: Any


class Run(NamedTuple):
    """``count`` tiles of keys from ``least`` on; all queries see all of those from ``first`` to ``last``."""

    least: Any
    first: Any
    last: Any
    count: Any


@gluon.jit
def barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    made = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(made.index(i), count=ARRIVALS)
    return made


@gluon.jit
def empty(desc, STAGES: gl.constexpr):
    BN: gl.constexpr = desc.block_shape[3]
    D: gl.constexpr = desc.block_shape[4]
    tiles = gl.allocate_shared_memory(desc.dtype, [STAGES, 1, 1, 1, BN, D], desc.layout)
    return Ring(tiles, barriers(STAGES, 1), barriers(STAGES, 2))


@gluon.jit
def corner(desc, size, i_b, i_h):
    """Where a tensor has an example and a head, whether or not these share its numbers."""
    outer = gl.minimum(i_b // size.inner, desc.shape[0] - 1)
    inner = gl.minimum(i_b % size.inner, desc.shape[1] - 1)
    return Corner(outer, inner, gl.minimum(i_h, desc.shape[2] - 1))


@gluon.jit
def fetch(desc, at, row, ring, i, STAGES: gl.constexpr):
    """Tile i, when its place is free."""
    full = ring.full.index(i % STAGES)
    mbarrier.wait(ring.free.index(i % STAGES), i // STAGES & 1 ^ 1)
    mbarrier.expect(full, desc.block_type.nbytes)
    tma.async_copy_global_to_shared(desc, [at.outer, at.inner, at.head, row, 0], full, ring.tiles.index(i % STAGES))


@gluon.jit
def produce(k, v, size, i_b, i_g, run, ks, vs, BN: gl.constexpr, STAGES: gl.constexpr):
    k_at, v_at = corner(k, size, i_b, i_g), corner(v, size, i_b, i_g)
    for i in range(run.count):
        fetch(k, k_at, run.least + i * BN, ks, i, STAGES)
        fetch(v, v_at, run.least + i * BN, vs, i, STAGES)


@gluon.jit
def arrived(ring, i, STAGES: gl.constexpr):
    mbarrier.wait(ring.full.index(i % STAGES), i // STAGES & 1)


@gluon.jit
def tile(ring, i, BN: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr):
    return ring.tiles.index(i % STAGES).reshape([BN, D])


@gluon.jit
def begun(q, ks, i, BN: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, SL: gl.constexpr):
    """q kᵀ of tile i, at work."""
    arrived(ks, i, STAGES)
    k = tile(ks, i, BN, D, STAGES).permute((1, 0))
    return hw.warpgroup_mma(q, k, gl.zeros([ROWS, BN], gl.float32, SL), use_acc=False, is_async=True)


@gluon.jit
def weigh(s, top, lo, hi, n0, c, LO: gl.constexpr, EDGE: gl.constexpr, BN: gl.constexpr, SL: gl.constexpr):
    """Weights of products ``[64, BN]``, the new maximum, and by what old weights shrink."""
    if EDGE:
        n = (n0 + gl.arange(0, BN, gl.SliceLayout(0, SL)))[None, :]
        s = gl.where(n < hi[:, None], s, -INF)
        if LO:
            s = gl.where(n >= lo[:, None], s, -INF)
    higher = gl.maximum(top, gl.max(s, 1) * c)
    base = gl.where(higher == -INF, 0.0, higher)
    return gl.exp2(s * c - base[:, None]), higher, gl.exp2(top - base)


@gluon.jit
def step(
    i, q, acc, P, top, total, lo, hi, run, c, ks, vs, LO: gl.constexpr, EDGE: gl.constexpr,
    BN: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, SL: gl.constexpr, OL: gl.constexpr,
):  # fmt: skip
    """The weights P of tile i − 1 times its values, and the weights of tile i."""
    s = begun(q, ks, i, BN, D, STAGES, SL)
    acc = hw.warpgroup_mma(P, tile(vs, i - 1, BN, D, STAGES), acc, is_async=True)
    s = hw.warpgroup_mma_wait(1, deps=(s,))
    mbarrier.arrive(ks.free.index(i % STAGES), count=1)
    weights, top, shrink = weigh(s, top, lo, hi, run.least + i * BN, c, LO, EDGE, BN, SL)
    total = total * shrink + gl.sum(weights, 1)
    # What the next step waits for is waited for here: past a wait the assembler moves no weights, which it would
    # otherwise find after the products that they are to be found beside.
    arrived(vs, i, STAGES)
    acc, P = hw.warpgroup_mma_wait(0, deps=(acc, P))
    mbarrier.arrive(vs.free.index((i - 1) % STAGES), count=1)
    acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, OL))[:, None]
    P = gl.convert_layout(weights.to(ks.tiles.dtype), gl.DotOperandLayout(0, OL, 2))
    return acc, P, top, total


@gluon.jit
def consume(
    g: gl.constexpr, o, lse, leaked, lo, hi, size, i_b, i_h, m0, run, scale, qs, q_full, ks, vs,
    BN: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """out and lse of the queries of group g; the last row's bounds stand for those behind it."""
    SL: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    OL: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    ROW: gl.constexpr = gl.SliceLayout(1, SL)
    LO: gl.constexpr = lo.data is not None
    own = m0 + g * ROWS
    o_m = own + gl.arange(0, ROWS, ROW)
    m = gl.minimum(o_m, size.M - 1).to(gl.int64)
    least, most = gl.zeros([ROWS], gl.int32, ROW), gl.full([ROWS], size.N, gl.int32, ROW)
    if lo.data is not None:
        least = gl.load(start(lo, i_b, i_h, size.inner) + m * lo.row).to(gl.int32)
    if hi.data is not None:
        most = gl.minimum(gl.load(start(hi, i_b, i_h, size.inner) + m * hi.row).to(gl.int32), most)
    c = scale * LOG2E
    top = gl.full([ROWS], -INF, gl.float32, ROW)
    acc = gl.zeros([ROWS, D], gl.float32, OL)

    mbarrier.wait(q_full, 0)
    q = qs.index(g).reshape([ROWS, D])
    s = hw.warpgroup_mma_wait(0, deps=(begun(q, ks, 0, BN, D, STAGES, SL),))
    mbarrier.arrive(ks.free.index(0), count=1)
    weights, top, _ = weigh(s, top, least, most, run.least, c, LO, True, BN, SL)
    total = gl.sum(weights, 1)
    P = gl.convert_layout(weights.to(ks.tiles.dtype), gl.DotOperandLayout(0, OL, 2))
    arrived(vs, 0, STAGES)
    for phase in gl.static_range(3):
        if phase == 0:
            begin, end = 1, run.first
        elif phase == 1:
            begin, end = gl.maximum(run.first, 1), run.last
        else:
            begin, end = gl.maximum(run.last, 1), run.count
        if phase > 0 or LO:
            for i in range(begin, end):
                acc, P, top, total = step(
                    i, q, acc, P, top, total, least, most, run, c, ks, vs, LO, phase != 1, BN, D, STAGES, SL, OL
                )
    acc = hw.warpgroup_mma(P, tile(vs, run.count - 1, BN, D, STAGES), acc, is_async=True)
    acc, P = hw.warpgroup_mma_wait(0, deps=(acc, P))

    some = total != 0
    total = gl.where(some, total, 1.0)
    acc = acc * gl.convert_layout(1 / total, gl.SliceLayout(1, OL))[:, None]
    found = gl.where(some, (top + gl.log2(total)) * LN2, -INF)
    gl.store(start(lse, i_b, i_h, size.inner) + o_m.to(gl.int64) * lse.row, found, mask=o_m < size.M)
    at = corner(o, size, i_b, i_h)
    q.store(acc.to(ks.tiles.dtype))
    hw.fence_async_shared()
    tma.async_copy_shared_to_global(o, [at.outer, at.inner, at.head, own, 0], qs.index(g))
    if leaked is not None:
        good = (gl.abs(acc) < INF).to(gl.int32)
        gl.store(leaked + gl.program_id(0) * 2 + g, 1 - gl.min(gl.min(good, 1), 0))
    tma.store_wait(0)


@gluon.jit
def attend(q, k, v, o, lse, lo, hi, leaked, size, scale, BN: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr):
    BM: gl.constexpr = 2 * ROWS
    i_m, i_bh = turn(gl.program_id(0), gl.cdiv(size.M, BM), size.examples * size.H)
    i_b, i_h, m0 = i_bh // size.H, i_bh % size.H, i_m * BM
    m = gl.minimum(m0 + gl.arange(0, BM, gl.BlockedLayout([1], [32], [4], [0])), size.M - 1).to(gl.int64)
    low, late, early, high = 0, 0, size.N, size.N
    if lo.data is not None:
        bound = gl.load(start(lo, i_b, i_h, size.inner) + m * lo.row).to(gl.int32)
        low, late = gl.min(bound, 0), gl.max(bound, 0)
    if hi.data is not None:
        bound = gl.minimum(gl.load(start(hi, i_b, i_h, size.inner) + m * hi.row).to(gl.int32), size.N)
        early, high = gl.min(bound, 0), gl.max(bound, 0)
    least, first, last = aligned(low, late, early, BN)
    run = Run(least, (first - least) // BN, (last - least) // BN, gl.maximum(gl.cdiv(high - least, BN), 1))

    qs = gl.allocate_shared_memory(q.dtype, [2, 1, 1, 1, ROWS, D], q.layout)
    q_full, ks, vs = barriers(1, 1).index(0), empty(k, STAGES), empty(v, STAGES)
    hw.fence_async_shared()
    at = corner(q, size, i_b, i_h)
    mbarrier.expect(q_full, 2 * q.block_type.nbytes)
    for g in gl.static_range(2):
        tma.async_copy_global_to_shared(q, [at.outer, at.inner, at.head, m0 + g * ROWS, 0], q_full, qs.index(g))
    gl.warp_specialize([
        (consume, (0, o, lse, leaked, lo, hi, size, i_b, i_h, m0, run, scale, qs, q_full, ks, vs, BN, D, STAGES)),
        (consume, (1, o, lse, leaked, lo, hi, size, i_b, i_h, m0, run, scale, qs, q_full, ks, vs, BN, D, STAGES)),
        (produce, (k, v, size, i_b, i_h // size.R, run, ks, vs, BN, STAGES)),
    ], [4, 1], [240, 24])  # fmt: skip


# Launches.


def fits(call: Launch) -> bool:
    """Whether the hardware can fetch the rows of a call, and a ring has tiles for them."""
    K, V = map(padded, call.widths.values())
    lengths = call.size.M, call.size.N, call.size.N
    fetched = all(
        t.data.data_ptr() % 16 == 0 and not any(step % 8 for step in t[1:5]) and (t.row or length == 1)
        for t, length in zip(call.x[:3], lengths, strict=False)
    )
    bare = not (call.rich or call.block) and call.numbers.scale > 0
    return bare and fetched and K == V in RINGS and call.widths["V"] % 8 == 0 and call.like.dtype != torch.float32


def described(t: View, call: Launch, heads: int, length: int, width: int, box: int) -> TensorDescriptor:
    """A tensor by example, head, row and feature; what they share has one of them."""
    sizes = call.size.examples // call.size.inner, call.size.inner, heads, length
    steps = t[1:5]
    shape = [size if step else 1 for size, step in zip(sizes, steps, strict=True)]
    D = padded(width)
    strides = [step or max(*steps, D) for step in steps]
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=5)
    return TensorDescriptor(t.data, [*shape, width], [*strides, 1], [1, 1, 1, box, D], layout)


def forward(call: Launch, y: Outputs) -> None:
    """Writes out and lse; behind a mask, tiles whose results are not finite run again as in ``forward.py``."""
    (M, N, H, R, *_), (K, V) = call.size, call.widths.values()
    BN, stages = RINGS[padded(K)]
    q = described(call.x.q, call, H, M, K, ROWS.value)
    k, v = described(call.x.k, call, H // R, N, K, BN), described(call.x.v, call, H // R, N, V, BN)
    out = described(y.out, call, H, M, V, ROWS.value)
    tiles = -(-M // (2 * ROWS.value)) * H * call.size.examples
    leaked = call.like.new_empty(tiles, 2, dtype=torch.int8) if call.masked else None
    with torch.cuda.device_of(call.like):
        attend[(tiles,)](
            q, k, v, out, y.lse, call.x.lo, call.x.hi, leaked, call.size, call.numbers.scale,
            BN=BN, D=padded(K), STAGES=stages, num_warps=4,
        )  # fmt: skip
    if leaked is not None:
        shape = call.tiles("forward", "V") | {"BM": 2 * ROWS.value}
        call.run(again, tiles, shape, call.x, None, y, None, leaked.view(torch.int16), strict=True)
