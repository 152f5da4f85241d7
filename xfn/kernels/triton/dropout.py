"""Bias, activation, dropout and residual in Triton:  dx = keep / (1 − p) · activation′(x + bias) · dy."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._core.philox import threshold
from ._activations import activated, slope
from ._launch import Group, Maybe, Strips, cotangent, lines, parted, passed
from ._launch import supports as supports
from ._philox import keep
from ._strips import line, load, store

WIDEST = 1024
"""Numbers of a row in one tile; no program needs all of a row."""


@triton.jit
def dropped(value, key, threshold, i_p, o_r, o_e, WIDE: tl.constexpr, BM: tl.constexpr, BE: tl.constexpr):
    """What survives, grown; without a key, the value."""
    if key.data is not None:
        p_key = key.data + i_p.to(tl.int64) * key.part
        k0, k1 = tl.load(p_key).to(tl.uint32), tl.load(p_key + 1).to(tl.uint32)
        eights = tl.min(o_e) // 8 + tl.arange(0, BE // 8)
        kept = keep(k0, k1, threshold, i_p * 0, o_r, eights, BM, BE)
        gain = 65536.0 / (tl.zeros([], WIDE) + (65536 - threshold))
        value = tl.where(kept, value * gain, 0.0)
    return value


@triton.jit
def moved(x, bias, i_p, o_r, R, o_e, E, WIDE: tl.constexpr):
    """x + bias."""
    value = load(x, i_p, o_r, R, o_e, E, WIDE)
    if bias.data is not None:
        value = value + line(bias, i_p, o_e, E, WIDE)
    return value


@triton.jit(do_not_specialize=["threshold"])
def drop(
    x, bias, residual, key, y, threshold, R, E, STRIPS, LONG, ACTIVATION: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    chunks = tl.cdiv(E, BE)
    strip = tl.program_id(0) // chunks
    o_e = tl.program_id(0) % chunks * BE + tl.arange(0, BE)
    i_p = strip // STRIPS
    o_r = strip % STRIPS * BM + tl.arange(0, BM)
    value = activated(moved(x, bias, i_p, o_r, R, o_e, E, WIDE), ACTIVATION)
    value = dropped(value, key, threshold, i_p, o_r, o_e, WIDE, BM, BE)
    if residual.data is not None:
        value = value + load(residual, i_p, o_r, R, o_e, E, WIDE)
    store(y, value, i_p, o_r, R, o_e, E)


@triton.jit(do_not_specialize=["threshold"])
def drop_backward(
    x, bias, key, dy, dx, dbias, threshold, R, E, STRIPS, LONG, ACTIVATION: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """dx, and its sum over the strip."""
    chunks = tl.cdiv(E, BE)
    strip = tl.program_id(0) // chunks
    o_e = tl.program_id(0) % chunks * BE + tl.arange(0, BE)
    i_p, i_s = strip // STRIPS, strip % STRIPS
    acc = tl.zeros([BM, BE], WIDE)
    for i_t in tl.range(i_s * LONG, i_s * LONG + LONG):
        o_r = i_t * BM + tl.arange(0, BM)
        d = dropped(load(dy, i_p, o_r, R, o_e, E, WIDE), key, threshold, i_p, o_r, o_e, WIDE, BM, BE)
        if ACTIVATION != "identity":
            d = d * slope(moved(x, bias, i_p, o_r, R, o_e, E, WIDE), ACTIVATION)
        if dx.data is not None:
            store(dx, d, i_p, o_r, R, o_e, E)
        acc += d
    if dbias.data is not None:
        store(dbias, tl.sum(acc, 0)[None, :], i_p, i_s + tl.arange(0, 1), STRIPS, o_e, E)


class Taken:
    """The operands of a call as kernels take them: what is like x ``[P, R, E]``, biases ``[P, E]``, keys ``[P, 2]``.
    Where there is a key rows are counted within an example."""

    def __init__(self, rows: Group, biases: Group, key: Maybe, p: float, sums: bool) -> None:
        *self.own, key = (None if t is None else t.unsqueeze(-2) for t in (*biases, key))
        self.parts = parted(rows, [*self.own, key], inner=None if key is None else 1)
        self.rows, self.biases = [*map(self.parts.flat, rows)], [*map(self.parts.shared, self.own)]
        self.key, self.threshold = self.parts.shared(key), threshold(p)
        first = self.rows[0]
        assert first is not None
        self.strips = Strips.of(first, WIDEST, sums)

    def new(self) -> Tensor:
        """Rows for a result."""
        return self.strips.like.new_empty(self.strips.like.shape)

    def sums(self) -> Tensor:
        """A line for each strip."""
        return self.strips.new(self.strips.strips, self.strips.E)

    def run(self, kernel: Any, *args: Maybe, activation: str | None = None) -> None:
        """A program per strip and chunk of columns."""
        chunks = triton.cdiv(self.strips.E, self.strips.shape["BE"])
        constants = {} if activation is None else {"ACTIVATION": activation}
        self.strips.run(kernel, *map(lines, args), self.threshold, chunks=chunks, **constants)

    def whole(self, t: Tensor) -> Tensor:
        """Rows as the batch has them."""
        return t.view(*self.parts.batch, self.strips.E)

    def grad(self, found: Maybe, t: Maybe) -> Maybe:
        return None if found is None else self.parts.grad(self.whole(found), t, True)

    def own_grad(self, sums: Maybe, i: int, dtype: torch.dtype) -> Maybe:
        """The gradient of a bias, from what strips summed."""
        line = None if sums is None else self.parts.shared_grad(self.strips.total(sums), self.own[i], True)
        return None if line is None else line.squeeze(-2).to(dtype)


def forward(x: Group, c: Group, *, p: float, activation: str) -> tuple[Tensor]:
    at = Taken([x[0], x[2]], x[1:2], c[0], p, sums=False)
    y = at.new()
    at.run(drop, at.rows[0], at.biases[0], at.rows[1], at.key, y, activation=activation)
    return (at.whole(y),)


def backward(
    x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float, activation: str
) -> list[Maybe]:
    d = cotangent(dy[0], y[0])
    at = Taken([x[0], d], x[1:2], c[0], p, sums=needs[1])
    dx, sums = at.new() if needs[0] else None, at.sums() if needs[1] else None
    if dx is not None or sums is not None:
        at.run(drop_backward, at.rows[0], at.biases[0], at.key, at.rows[1], dx, sums, activation=activation)
    return [at.grad(dx, x[0]), at.own_grad(sums, 0, d.dtype), passed(d, x[2], needs[2])]
