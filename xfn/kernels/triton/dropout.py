"""Bias, activation, dropout and residual in Triton:  dx = keep / (1 − p) · activation′(x + bias) · dy."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..._core.philox import threshold
from ._activations import activated, slope
from ._launch import Group, Maybe, Strips, cotangent, lines, parted
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
    """The operands of a call as kernels take them: x and what is like it ``[P, R, E]``, the bias ``[P, E]``, keys
    ``[P, 2]``. Where there is a key rows are counted within an example."""

    def __init__(self, x: Group, c: Group, p: float, beside: Maybe, sums: bool) -> None:
        given, bias = x[:2]
        assert given is not None
        line, key = (None if t is None else t.unsqueeze(-2) for t in (bias, c[0]))
        self.parts = parted([given, beside], [line, key], inner=None if key is None else 1)
        rows = self.parts.flat(given)
        assert rows is not None
        self.rows, self.bias, self.key = rows, self.parts.shared(line), self.parts.shared(key)
        self.beside, self.line, self.threshold = self.parts.flat(beside), line, threshold(p)
        self.strips = Strips.of(rows, WIDEST, sums)
        self.chunks = triton.cdiv(self.strips.E, self.strips.shape["BE"])


def forward(x: Group, c: Group, *, p: float, activation: str) -> tuple[Tensor]:
    at = Taken(x, c, p, x[2], sums=False)
    y = at.rows.new_empty(at.rows.shape)
    args = map(lines, (at.rows, at.bias, at.beside, at.key, y))
    at.strips.run(drop, *args, at.threshold, chunks=at.chunks, ACTIVATION=activation)
    return (y.view(*at.parts.batch, y.shape[-1]),)


def backward(
    x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float, activation: str
) -> list[Maybe]:
    d = cotangent(dy[0], y[0])
    at = Taken(x, c, p, d, sums=needs[1])
    dx = at.rows.new_empty(at.rows.shape) if needs[0] else None
    sums = at.strips.new(at.strips.strips, at.strips.E) if needs[1] else None
    if dx is not None or sums is not None:
        args = map(lines, (at.rows, at.bias, at.key, at.beside, dx, sums))
        at.strips.run(drop_backward, *args, at.threshold, chunks=at.chunks, ACTIVATION=activation)
    dline = None if sums is None else at.parts.shared_grad(at.strips.total(sums), at.line, True)
    return [
        None if dx is None else at.parts.grad(dx.view(*at.parts.batch, at.strips.E), x[0], True),
        None if dline is None else dline.squeeze(-2).to(d.dtype),
        d.clone().sum_to_size(x[2].shape) if needs[2] and x[2] is not None else None,
    ]
