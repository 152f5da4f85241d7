"""Which keys a tile of queries meets, and which queries a tile of keys: all, or those in the live tiles of a layout.

A walk steps over places. Without a layout place v is key v. With one, a row's live tiles lie side by side, the full
ones first: place v is key v % block of tile ``list[v // block]``, so that small tiles are gathered into one step, and
large ones take several. Along the walk the places are in three runs, and the second is compared with nothing:

    phase 0   some rows see all of a tile, some begin within it
    phase 1   all rows see all
    phase 2   some end within a tile; then come the tiles that are live in part
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .._tile import ABSENT, View, start, turn

CHUNK: tl.constexpr = tl.constexpr(256)


class Lists(NamedTuple):
    """The live tiles of rows or columns, as ``_core/tables.py`` lists them."""

    tiles: View
    counts: View
    order: View


class Tiles(NamedTuple):
    """A layout: its ``block``, which is 0 if there is none, known when compiled; how many heads have lists of their
    own; which tiles are live; where partial ones have their words, and these; lists by row and by column."""

    block: Any
    own: int
    live: View | None
    places: View | None
    words: View
    rows: Lists | None
    columns: Lists | None


ALL = Tiles(tl.constexpr(0), 1, None, None, ABSENT, None, None)
"""No layout."""


class Walk(NamedTuple):
    """least ≤ first ≤ last ≤ most; from place ``jump`` of ``list`` on, ``skip`` tiles are passed over."""

    list: Any
    least: Any
    first: Any
    last: Any
    most: Any
    jump: Any
    skip: Any


class Keys(NamedTuple):
    """Those of one step: ``n [BN]``, their groups of eight ``eights [BN // 8]``, and which of them a layout shows to
    which query."""

    n: Any
    eights: Any
    shown: Any


@triton.jit
def longest(pid, x, lists, size, COUNT, HEADS, one, B: tl.constexpr):
    """The example, the head and the first of B queries or keys of a program, where the longest lists come first; that
    cannot be told where a program has the lists of several heads, and not ``one``."""
    SPLIT: tl.constexpr = (x.tiles.block + B - 1) // B
    lines = tl.cdiv(COUNT, x.tiles.block)
    own = tl.where(one, x.tiles.own, 1)
    i, other = turn(pid, own * lines * SPLIT, size.examples * (HEADS // own))
    each = HEADS // own
    i_b = other // each
    rank = own * lines - 1 - i // SPLIT
    first = tl.load(start(lists.order, i_b, tl.zeros([], tl.int32), size.inner) + rank * lists.order.col)
    line = tl.where(one | (x.tiles.own == 1), first, rank)
    return i_b, other % each + line // lines, line % lines * x.tiles.block + i % SPLIT * B


@triton.jit
def in_line(x, first, END, B: tl.constexpr):
    """B queries or keys from the first on; END for those that are in the next line of tiles."""
    o = first + tl.arange(0, B)
    if x.tiles.block > 0 and x.tiles.block < B:
        o = tl.where(tl.arange(0, B) < x.tiles.block, o, END)
    return o


@triton.jit
def own_queries(pid, x, size, BM: tl.constexpr):
    """The example and the head of a program, its first query, and all."""
    if x.tiles.block == 0:
        i_m, i_bh = turn(pid, tl.cdiv(size.M, BM), size.examples * size.H)
        i_b, i_h, m0 = i_bh // size.H, i_bh % size.H, i_m * BM
    else:
        i_b, i_h, m0 = longest(pid, x, x.tiles.rows, size, size.M, size.H, True, BM)
    return i_b, i_h, m0, in_line(x, m0, size.M, BM)


@triton.jit
def own_keys(pid, x, size, BN: tl.constexpr):
    """The example and the key head of a program, its first key, and all."""
    G = size.H // size.R
    if x.tiles.block == 0:
        count = tl.cdiv(size.N, BN)
        i_n, i_bg = turn(pid, count, size.examples * G)
        i_b, i_g, n0 = i_bg // G, i_bg % G, (count - 1 - i_n) * BN
    else:
        i_b, i_g, n0 = longest(pid, x, x.tiles.columns, size, size.N, G, size.R == 1, BN)
    return i_b, i_g, n0, in_line(x, n0, size.N, BN)


@triton.jit
def line(lists, i_b, i_h, i, size):
    """The list of a row or column of tiles, how many of it are full, and how many live."""
    list = start(lists.tiles, i_b, i_h, size.inner) + i.to(tl.int64) * lists.tiles.row
    counts = start(lists.counts, i_b, i_h, size.inner) + i.to(tl.int64) * lists.counts.row
    return list, tl.load(counts), tl.load(counts + lists.counts.col)


@triton.jit
def before(list, begin, end, tile):
    """How many of ascending entries [begin, end) are less than ``tile``."""
    count = tl.zeros([], tl.int32)
    for at in tl.range(begin, end, CHUNK):
        o = at + tl.arange(0, CHUNK)
        count += tl.sum(((o < end) & (tl.load(list + o, mask=o < end, other=0) < tile)).to(tl.int32))
    return count


@triton.jit
def aligned(low, late, early, BN):
    """Where tiles of BN keys begin, for queries of which some see keys from ``low`` on, all from ``late`` on and up to
    ``early``; and where those tiles begin and end that all see whole."""
    least = low // BN * BN
    first, last = (late + BN - 1) // BN * BN, max(early // BN * BN, least)
    return least, min(max(first, least), last), last


@triton.jit
def once(begin, end):
    """The end of a walk that takes one step at least, and the compiler knows. Of a loop that may be passed over it sets
    the sums as they began among its products, which wait for one another then."""
    end = tl.maximum(end, begin + 1)
    tl.assume(begin < end)
    return end


@triton.jit
def over_keys(x, size, i_b, i_h, m0, lo, hi, BN: tl.constexpr):
    """The walk of queries from m0 on, which see lo ≤ n < hi."""
    nothing = tl.zeros([], tl.int32)
    low, high, inner = tl.min(lo), tl.max(hi), tl.minimum(tl.min(hi), size.N)
    if x.tiles.block == 0:
        least, first, last = aligned(low, tl.max(lo), inner, BN)
        walk = Walk(nothing, least, first, last, once(least, high), nothing, nothing)
    else:
        block: tl.constexpr = x.tiles.block
        list, full, live = line(x.tiles.rows, i_b, i_h, m0 // block, size)
        least, first, jump, skip, end = nothing, nothing, full, nothing, live
        last = before(list, 0, full, inner // block)
        if x.lo.data is not None:
            least = before(list, 0, full, low // block)
            first = before(list, 0, full, tl.cdiv(tl.max(lo), block))
            skip = before(list, full, live, low // block)
        if x.hi.data is not None:
            jump = before(list, 0, full, tl.cdiv(high, block))
            end = full + before(list, full, live, tl.cdiv(high, block))
        skip += full - jump
        most = (jump + tl.maximum(end - jump - skip, 0)) * block
        least = least * block
        first = least + tl.cdiv(first * block - least, BN) * BN
        last = least + (last * block - least) // BN * BN
        walk = Walk(list, least, first, last, most, jump, skip)
    last = tl.maximum(walk.last, walk.least)
    first = tl.minimum(tl.maximum(walk.first, walk.least), last)
    return Walk(walk.list, walk.least, first, last, walk.most, walk.jump, walk.skip)


@triton.jit
def over_queries(x, size, i_b, i_h, n0, first, last, BM: tl.constexpr):
    """The walk of keys from n0 on over those of the queries first ≤ m < last, which alone may see them; none is in
    phase 0, and where there are bounds none in phase 1."""
    nothing = tl.zeros([], tl.int32)
    if x.tiles.block == 0:
        list, least, jump, skip = nothing, first // BM * BM, nothing, nothing
        most = once(least, last)
        full = most
    else:
        block: tl.constexpr = x.tiles.block
        list, jump, end = line(x.tiles.columns, i_b, i_h, n0 // block, size)
        least, skip = nothing, nothing
        full = jump * block
        if x.lo.data is not None or x.hi.data is not None:
            whole = jump
            least = before(list, 0, whole, first // block) * block
            jump = before(list, 0, whole, tl.cdiv(last, block))
            skip = before(list, whole, end, first // block)
            end = whole + before(list, whole, end, tl.cdiv(last, block))
            skip += whole - jump
        most = (jump + tl.maximum(end - jump - skip, 0)) * block
        if x.tiles.words.data is not None:
            full = full // BM * BM
    if x.lo.data is not None or x.hi.data is not None:
        full = least
    return Walk(list, least, least, full, most, jump, skip)


@triton.jit
def stretch(walk, phase: tl.constexpr):
    """The places of one of the three phases."""
    if phase == 0:
        begin, end = walk.least, walk.first
    elif phase == 1:
        begin, end = walk.first, walk.last
    else:
        begin, end = walk.last, walk.most
    return begin, end


@triton.jit
def place(x, walk, v0, LATE: tl.constexpr):
    """Where a place is; ``LATE`` in the last phase."""
    o = v0
    if x.tiles.block > 0:
        at = v0 // x.tiles.block
        inside = v0 - at * x.tiles.block
        if LATE:
            at += tl.where(at >= walk.jump, walk.skip, 0)
        o = tl.load(walk.list + at, mask=v0 < walk.most, other=0) * x.tiles.block + inside
    return o


@triton.jit
def along(x, walk, v0, END, COUNT: tl.constexpr, UNIT: tl.constexpr, LATE: tl.constexpr):
    """What is at COUNT places from v0 on, in groups of UNIT; END behind the last."""
    o = v0 // UNIT + tl.arange(0, COUNT)
    if x.tiles.block > 0:
        EACH: tl.constexpr = x.tiles.block // UNIT
        if EACH >= COUNT:
            o = place(x, walk, v0, LATE) // UNIT + tl.arange(0, COUNT)
        else:
            at, inside = o // EACH, o * UNIT < walk.most
            if LATE:
                at += tl.where(at >= walk.jump, walk.skip, 0)
            tile = tl.load(walk.list + at, mask=inside, other=0)
            o = tl.where(inside, tile * EACH + o % EACH, END)
    return o


@triton.jit
def bits(x, size, i_b, i_h, o_m, walk, v0, LISTED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """What the words of tiles show queries of the keys from n = v0 on, or from place v0 of a list on: ``[BM, BN]``."""
    block: tl.constexpr = x.tiles.block
    most: tl.constexpr = block if block < 32 else 32
    WORD: tl.constexpr = most if most < BN else BN
    places, words = x.tiles.places, x.tiles.words
    m = tl.minimum(o_m, size.M - 1).to(tl.int64)
    p_places = start(places, i_b, i_h, size.inner) + m // block * places.row
    p_words = start(words, i_b, tl.zeros([], tl.int32), size.inner) + m % block * words.row
    o = tl.arange(0, BN)
    found = tl.zeros([BM, BN], tl.int32)
    for i in tl.static_range(BN // WORD):
        n = v0 + i * WORD
        if LISTED:
            n = place(x, walk, n, True)
        n = tl.minimum(n, size.N - 1)
        tile = tl.load(p_places + n // block * places.col)  # [BM]
        word = tl.load(p_words + tl.maximum(tile, 0).to(tl.int64) * words.head + n % block // 32 * words.col)
        word = tl.where(tile < 0, -1, word >> (n % block % 32))
        found = tl.where((o // WORD == i)[None, :], word[:, None], found)
    return (found >> (o % WORD)[None, :] & 1) != 0


@triton.jit
def keys_at(x, size, walk, v0, i_b, i_h, o_m, BM: tl.constexpr, BN: tl.constexpr, phase: tl.constexpr):
    """Those of the step from place v0 on."""
    n = along(x, walk, v0, size.N, BN, 1, phase == 2)
    eights = along(x, walk, v0, size.N, BN // 8, 8, phase == 2)
    shown = tl.full([1, 1], 1, tl.int1)
    if phase == 2 and x.tiles.words.data is not None:
        shown = bits(x, size, i_b, i_h, o_m, walk, v0, True, BM, BN)
    return Keys(n, eights, shown)


@triton.jit
def keys_from(x, size, n0, o_n, i_b, i_h, o_m, BM: tl.constexpr, BN: tl.constexpr, phase: tl.constexpr):
    """The program's own, from n0 on, as the queries of a step meet them."""
    shown = tl.full([1, 1], 1, tl.int1)
    if phase == 2 and x.tiles.words.data is not None:
        shown = bits(x, size, i_b, i_h, o_m, 0, n0, False, BM, BN)
    return Keys(o_n, n0 // 8 + tl.arange(0, BN // 8), shown)


@triton.jit
def keys_anywhere(x, size, n0, i_b, i_h, o_m, BM: tl.constexpr, BN: tl.constexpr):
    """Those from n0 on, with queries that need not be of one line of tiles; and whether they meet."""
    o_n = n0 + tl.arange(0, BN)
    keys = keys_from(x, size, n0, o_n, i_b, i_h, o_m, BM, BN, 2)
    some = True
    if x.tiles.block > 0:
        m = tl.minimum(o_m, size.M - 1).to(tl.int64) // x.tiles.block
        n = tl.minimum(o_n, size.N - 1).to(tl.int64) // x.tiles.block
        p_live = start(x.tiles.live, i_b, i_h, size.inner)
        live = tl.load(p_live + m[:, None] * x.tiles.live.row + n[None, :] * x.tiles.live.col) != 0
        keys = Keys(o_n, keys.eights, keys.shown & live)
        some = tl.max(live.to(tl.int32)) > 0
    return keys, some
