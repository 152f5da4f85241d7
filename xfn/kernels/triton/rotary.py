"""Pairs of features turned, in Triton.

    y[a] = cos x[a] − sin x[b]        dcos = Σ dy[a] x[a] + dy[b] x[b]        over the heads of a row
    y[b] = sin x[a] + cos x[b]        dsin = Σ dy[b] x[a] − dy[a] x[b]

A program has a tile of lines, which are the heads of rows one behind another, and a chunk of their pairs, or of the
features behind the last pair, which it copies. Backward dy turns back.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._core.kinds import wide
from ..._core.rows import fit
from ..._core.shapes import broadcast
from ._launch import AREA, Group, Maybe, cotangent, lines
from ._launch import supports as supports
from ._strips import load, store
from ._target import INTERPRETED

WIDEST = 512
"""Pairs of a head in one tile."""


class Heads(NamedTuple):
    """A tensor ``[P, R, H, K]`` as its data and its strides; the numbers of a head lie side by side."""

    data: Any
    part: int
    row: int
    head: int


@triton.jit
def spots(t, i_p, o_r, o_h, o_k):
    """Pointers to a tile of lines ``[BM, BK]``."""
    p_line = t.data + i_p.to(tl.int64) * t.part + o_r.to(tl.int64) * t.row + o_h.to(tl.int64) * t.head
    return p_line[:, None] + o_k[None, :]


@triton.jit
def pairs(t, i_p, o_r, o_h, R, o_i, L, WIDE: tl.constexpr, ADJACENT: tl.constexpr, BM: tl.constexpr, BL: tl.constexpr):
    """The first and the second number of pairs ``[BM, BL]``, zero outside."""
    inside = (o_r < R)[:, None]
    if ADJACENT:
        o_k = tl.min(o_i) * 2 + tl.arange(0, 2 * BL)
        both = tl.load(spots(t, i_p, o_r, o_h, o_k), mask=inside & (o_k < 2 * L)[None, :], other=0.0)
        a, b = tl.split(tl.reshape(both, [BM, BL, 2]))
    else:
        paired = inside & (o_i < L)[None, :]
        a = tl.load(spots(t, i_p, o_r, o_h, o_i), mask=paired, other=0.0)
        b = tl.load(spots(t, i_p, o_r, o_h, o_i + L), mask=paired, other=0.0)
    return a.to(WIDE), b.to(WIDE)


@triton.jit
def turn(
    x, cos, sin, y, R, H, K, L, SIGN: tl.constexpr, ADJACENT: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr,
    BL: tl.constexpr,
):  # fmt: skip
    turning = tl.cdiv(L, BL)
    chunks = turning + tl.cdiv(K - 2 * L, 2 * BL)
    tiles = tl.cdiv(R * H, BM)
    i_c, i_t = tl.program_id(0) % chunks, tl.program_id(0) // chunks
    i_p = i_t // tiles
    o_l = i_t % tiles * BM + tl.arange(0, BM)
    o_r, o_h = o_l // H, o_l % H
    inside = (o_r < R)[:, None]
    to = y.data.dtype.element_ty
    if i_c < turning:
        o_i = i_c * BL + tl.arange(0, BL)
        a, b = pairs(x, i_p, o_r, o_h, R, o_i, L, WIDE, ADJACENT, BM, BL)
        c, s = load(cos, i_p, o_r, R, o_i, L, WIDE), SIGN * load(sin, i_p, o_r, R, o_i, L, WIDE)
        a, b = a * c - b * s, a * s + b * c
        if ADJACENT:
            o_k = i_c * BL * 2 + tl.arange(0, 2 * BL)
            both = tl.reshape(tl.join(a, b), [BM, 2 * BL])
            tl.store(spots(y, i_p, o_r, o_h, o_k), both.to(to), mask=inside & (o_k < 2 * L)[None, :])
        else:
            paired = inside & (o_i < L)[None, :]
            tl.store(spots(y, i_p, o_r, o_h, o_i), a.to(to), mask=paired)
            tl.store(spots(y, i_p, o_r, o_h, o_i + L), b.to(to), mask=paired)
    else:
        o_k = 2 * L + (i_c - turning) * BL * 2 + tl.arange(0, 2 * BL)
        left = inside & (o_k < K)[None, :]
        tl.store(spots(y, i_p, o_r, o_h, o_k), tl.load(spots(x, i_p, o_r, o_h, o_k), mask=left), mask=left)


@triton.jit
def tables(
    x, dy, dcos, dsin, R, H, K, L, SIGN: tl.constexpr, ADJACENT: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr,
    BL: tl.constexpr,
):  # fmt: skip
    """dcos and dsin, of a tile of rows."""
    chunks = tl.cdiv(L, BL)
    tiles = tl.cdiv(R, BM)
    i_t = tl.program_id(0) // chunks
    i_p = i_t // tiles
    o_r = i_t % tiles * BM + tl.arange(0, BM)
    o_i = tl.program_id(0) % chunks * BL + tl.arange(0, BL)
    along, across = tl.zeros([BM, BL], WIDE), tl.zeros([BM, BL], WIDE)
    for i_h in tl.range(0, H):
        a, b = pairs(x, i_p, o_r, o_r * 0 + i_h, R, o_i, L, WIDE, ADJACENT, BM, BL)
        u, v = pairs(dy, i_p, o_r, o_r * 0 + i_h, R, o_i, L, WIDE, ADJACENT, BM, BL)
        along += u * a + v * b
        across += v * a - u * b
    if dcos.data is not None:
        store(dcos, along, i_p, o_r, R, o_i, L)
    if dsin.data is not None:
        store(dsin, across, i_p, o_r, R, o_i, L)


class Taken:
    """The operands of a call as kernels take them: x ``[P, R, H, K]``, tables ``[P, R, L]``, or of one part for all."""

    def __init__(self, x: Group, pairing: str) -> None:
        given, *own = (t for t in x if t is not None)
        self.batch = broadcast((tuple(given.shape[:-2]), *(tuple(t.shape[:-1]) for t in own)))
        self.H, self.K = given.shape[-2:]
        self.L, double = own[0].shape[-1], given.dtype == torch.float64
        self.dtype, self.adjacent, self.x = wide(given.dtype), pairing == "adjacent", self.heads(given)
        self.cos, self.sin = (self.flat(t) for t in own)
        BL = 16 if INTERPRETED else max(16, min(triton.next_power_of_2(self.L), WIDEST >> double))
        BM = 2 if INTERPRETED else max(1, (AREA >> double) // (2 * BL))
        self.shape = {"WIDE": tl.float64 if double else tl.float32, "BM": BM, "BL": BL, "num_warps": 8}

    def heads(self, t: Tensor) -> Tensor:
        """``[P, R, H, K]``, copied only where its batch cannot be walked, or its numbers lie apart."""
        t = t.expand(*self.batch, self.H, self.K)
        t = t if t.stride(-1) == 1 or self.K == 1 else t.contiguous()
        return t.reshape(-1, *t.shape[-3:])

    def flat(self, t: Tensor) -> Tensor:
        """``[P, R, L]``."""
        return t.expand(*self.batch, self.L).reshape(-1, self.batch[-1], self.L)

    def run(self, kernel: Any, count: int, chunks: int, *args: Any, sign: float = 1.0) -> None:
        """A program per tile of so many lines of a part, and chunk."""
        (P, R), BM = self.x.shape[:2], self.shape["BM"]
        with torch.cuda.device_of(self.x):
            grid = (P * triton.cdiv(count, BM) * chunks,)
            kernel[grid](*args, R, self.H, self.K, self.L, SIGN=sign, ADJACENT=self.adjacent, **self.shape)

    def turned(self, x: Tensor, sign: float) -> Tensor:
        y, BL = x.new_empty(x.shape), self.shape["BL"]
        chunks = triton.cdiv(self.L, BL) + triton.cdiv(self.K - 2 * self.L, 2 * BL)
        args = (Heads(x, *x.stride()[:3]), lines(self.cos), lines(self.sin), Heads(y, *y.stride()[:3]))
        self.run(turn, x.shape[1] * self.H, chunks, *args, sign=sign)
        return y.view(*self.batch, self.H, self.K)

    def tables(self, d: Tensor, needs: Sequence[bool]) -> list[Maybe]:
        """dcos and dsin, those that are needed."""
        found = [
            torch.empty_like(self.cos, dtype=self.dtype, memory_format=torch.contiguous_format) if need else None
            for need in needs
        ]
        given = (Heads(t, *t.stride()[:3]) for t in (self.x, d))
        self.run(tables, d.shape[1], triton.cdiv(self.L, self.shape["BL"]), *given, *map(lines, found))
        return [None if t is None else t.view(*self.batch, self.L) for t in found]


def forward(x: Group, c: Group, *, pairing: str) -> tuple[Tensor]:
    at = Taken(x, pairing)
    return (at.turned(at.x, 1.0),)


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, pairing: str) -> list[Maybe]:
    at = Taken(x, pairing)
    d = at.heads(cotangent(dy[0], y[0]))
    dx = at.turned(d, -1.0) if needs[0] else None
    found = [dx, *(at.tables(d, needs[1:]) if any(needs[1:]) else (None, None))]
    return [fit(grad, t) for grad, t in zip(found, x, strict=True)]
