"""Between the products of a gated feed-forward, in Triton.

With g and u the sums with their biases and d = keep / (1 − p) · dy:  dup = d silu(g), dgate = d u silu′(g).
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ._activations import sigmoid
from ._launch import Group, Maybe, cotangent
from ._launch import supports as supports
from ._strips import load, store
from .dropout import Taken, dropped, moved


@triton.jit(do_not_specialize=["threshold"])
def gate(
    x, up, bias, up_bias, key, y, threshold, R, E, STRIPS, LONG, WIDE: tl.constexpr, BM: tl.constexpr,
    BE: tl.constexpr,
):  # fmt: skip
    chunks = tl.cdiv(E, BE)
    strip = tl.program_id(0) // chunks
    o_e = tl.program_id(0) % chunks * BE + tl.arange(0, BE)
    i_p = strip // STRIPS
    o_r = strip % STRIPS * BM + tl.arange(0, BM)
    g = moved(x, bias, i_p, o_r, R, o_e, E, WIDE)
    value = g * sigmoid(g) * moved(up, up_bias, i_p, o_r, R, o_e, E, WIDE)
    store(y, dropped(value, key, threshold, i_p, o_r, o_e, WIDE, BM, BE), i_p, o_r, R, o_e, E)


@triton.jit(do_not_specialize=["threshold"])
def gate_backward(
    x, up, bias, up_bias, key, dy, dx, dup, dbias, dup_bias, threshold, R, E, STRIPS, LONG, WIDE: tl.constexpr,
    BM: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Both gradients, and their sums over the strip."""
    chunks = tl.cdiv(E, BE)
    strip = tl.program_id(0) // chunks
    o_e = tl.program_id(0) % chunks * BE + tl.arange(0, BE)
    i_p, i_s = strip // STRIPS, strip % STRIPS
    acc, acc_up = tl.zeros([BM, BE], WIDE), tl.zeros([BM, BE], WIDE)
    for i_t in tl.range(i_s * LONG, i_s * LONG + LONG):
        o_r = i_t * BM + tl.arange(0, BM)
        d = dropped(load(dy, i_p, o_r, R, o_e, E, WIDE), key, threshold, i_p, o_r, o_e, WIDE, BM, BE)
        g, u = moved(x, bias, i_p, o_r, R, o_e, E, WIDE), moved(up, up_bias, i_p, o_r, R, o_e, E, WIDE)
        s = sigmoid(g)
        d_g, d_u = d * s * u * (1 + g * (1 - s)), d * s * g
        if dx.data is not None:
            store(dx, d_g, i_p, o_r, R, o_e, E)
        if dup.data is not None:
            store(dup, d_u, i_p, o_r, R, o_e, E)
        acc += d_g
        acc_up += d_u
    if dbias.data is not None:
        store(dbias, tl.sum(acc, 0)[None, :], i_p, i_s + tl.arange(0, 1), STRIPS, o_e, E)
    if dup_bias.data is not None:
        store(dup_bias, tl.sum(acc_up, 0)[None, :], i_p, i_s + tl.arange(0, 1), STRIPS, o_e, E)


def forward(x: Group, c: Group, *, p: float) -> tuple[Tensor]:
    at = Taken(x[:2], x[2:], c[0], p, sums=False)
    y = at.new()
    at.run(gate, *at.rows, *at.biases, at.key, y)
    return (at.whole(y),)


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float) -> list[Maybe]:
    d = cotangent(dy[0], y[0])
    at = Taken([*x[:2], d], x[2:], c[0], p, sums=any(needs[2:]))
    rows = [at.new() if need else None for need in needs[:2]]
    sums = [at.sums() if need else None for need in needs[2:]]
    at.run(gate_backward, *at.rows[:2], *at.biases, at.key, at.rows[2], *rows, *sums)
    own = [at.own_grad(found, i, d.dtype) for i, found in enumerate(sums)]
    return [at.grad(rows[0], x[0]), at.grad(rows[1], x[1]), *own]
