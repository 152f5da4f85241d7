"""A product and what follows it in Triton:  y = residual + keep / (1 − p) · activation(x Wᵀ + bias).

A program makes a tile of y: it sums over E in registers, and what follows is done there. Rows and columns behind the
end are the last ones again, which nobody stores, so that only the end of E is masked.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._core.dispatch import Call
from ..._core.philox import threshold
from ..._core.rows import Parts
from ._activations import activated
from ._launch import Group, lines, parted
from ._strips import line, load, places, store
from ._target import DEVICES, INTERPRETED, in_groups, precision
from ._tile import turn
from .dropout import dropped


class Tile(NamedTuple):
    """BM rows and BN columns of y, in steps of BK; what follows is done for PART columns at once."""

    BM: int
    BN: int
    BK: int
    PART: int
    num_warps: int
    num_stages: int


# From the largest.
HALF = (Tile(128, 128, 64, 128, 8, 3), Tile(64, 64, 64, 64, 4, 3))
GROUPS = (Tile(128, 256, 64, 32, 8, 4), Tile(128, 128, 64, 128, 8, 3), Tile(64, 64, 64, 64, 4, 4))
WIDE = (Tile(128, 128, 32, 32, 8, 3), Tile(64, 64, 32, 64, 8, 3))
SMALL = (Tile(16, 16, 16, 8, 4, 1),)
"""Interpreted, so that small calls have many."""
RICH = 32
"""Columns at once at most, where something is added or dropped."""
PROGRAMS = 128
"""The largest tile is taken of which there are as many, or else the smallest."""
FEW = 64
"""Rows, of which so few take no longer to multiply than their weights take to be read: then it pays to share E."""
ALIGNED = 16
"""Rows that are not so many numbers apart, or a multiple, are not fetched ahead, but held in registers."""


@triton.jit
def finish(
    acc, bias, residual, key, y, threshold, R, F, i_p, o_r, f0, ACTIVATION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """What follows the product, of so many columns at once as registers hold beside the sums."""
    if BN > PART:
        left, right = tl.split(tl.permute(tl.reshape(acc, [BM, 2, BN // 2]), [0, 2, 1]))
        finish(left, bias, residual, key, y, threshold, R, F, i_p, o_r, f0, ACTIVATION, BM, BN // 2, PART)
        finish(right, bias, residual, key, y, threshold, R, F, i_p, o_r, f0 + BN // 2, ACTIVATION, BM, BN // 2, PART)
    else:
        o_f = f0 + tl.arange(0, BN)
        if bias.data is not None:
            acc = acc + line(bias, i_p, o_f, F, tl.float32)
        value = dropped(activated(acc, ACTIVATION), key, threshold, i_p, o_r, o_f, tl.float32, BM, BN)
        if residual.data is not None:
            value = value + load(residual, i_p, o_r, R, o_f, F, tl.float32)
        store(y, value, i_p, o_r, R, o_f, F)


@triton.jit(do_not_specialize=["threshold"])
def fused(
    x, weight, bias, residual, key, y, threshold, R, F, E,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    down, across = tl.cdiv(R, BM), tl.cdiv(F, BN)
    i_p = tl.program_id(0) // (down * across)
    i_n, i_m = turn(tl.program_id(0) % (down * across), across, down)
    o_r, o_f, o_e = i_m * BM + tl.arange(0, BM), i_n * BN + tl.arange(0, BN), tl.arange(0, BK)
    p_x = places(x, i_p, tl.minimum(o_r, R - 1), o_e)
    p_w = places(weight, i_p, tl.minimum(o_f, F - 1), o_e)
    acc = tl.zeros([BM, BN], tl.float32)
    tl.assume(E > 0)
    for e0 in tl.range(0, E, BK):
        if EVEN:
            rows, columns = tl.load(p_x), tl.load(p_w)  # [BM, BK], [BN, BK]
        else:
            inside = (e0 + o_e < E)[None, :]
            rows, columns = tl.load(p_x, mask=inside, other=0.0), tl.load(p_w, mask=inside, other=0.0)
        acc = tl.dot(rows, tl.trans(columns), acc, input_precision=PRECISION)
        p_x += BK
        p_w += BK
    finish(acc, bias, residual, key, y, threshold, R, F, i_p, o_r, i_n * BN, ACTIVATION, BM, BN, PART)


def supports(call: Call) -> list[str]:
    x = call.tensors["x"]
    against = {
        f"it runs on {' or '.join(DEVICES)}, not on {x.device.type}": x.device.type not in DEVICES,
        f"{str(x.dtype).removeprefix('torch.')} is not float32, bfloat16 or float16": x.dtype == torch.float64,
        "a tensor is empty": any(t is not None and not t.numel() for t in call.tensors.values()),
    }
    return [reason for reason, holds in against.items() if holds]


def worth(call: Call) -> bool:
    """Where tensor cores multiply what is fetched ahead, and there are rows enough."""
    x = call.tensors["x"]
    E = x.shape[-1]
    return x.numel() >= FEW * E and not E % ALIGNED and (x.dtype != torch.float32 or precision() != "ieee")


def tile(P: int, R: int, F: int, dtype: torch.dtype, aligned: bool = True, rich: bool = False) -> Tile:
    tiles = SMALL if INTERPRETED else WIDE if dtype == torch.float32 else GROUPS if in_groups() else HALF
    fits = (t for t in tiles if aligned and programs(t, P, R, F) >= PROGRAMS)
    found = next(fits, tiles[-1])
    return found._replace(PART=min(found.PART, RICH)) if rich else found


def programs(t: Tile, P: int, R: int, F: int) -> int:
    """One for every tile."""
    return int(P * triton.cdiv(R, t.BM) * triton.cdiv(F, t.BN))


def forward(x: Group, c: Group, *, p: float, activation: str) -> tuple[Tensor]:
    given, weight, bias, residual = x
    assert given is not None
    assert weight is not None
    row, key = (None if t is None else t.unsqueeze(-2) for t in (bias, c[0]))
    apart = 1 if key is not None or not steady(given) else None
    parts: Parts = parted([given, residual], [weight[..., :1, :], row, key], inner=apart)
    rows, (F, E) = parts.flat(given), weight.shape[-2:]
    assert rows is not None
    P, R, _ = rows.shape
    y = rows.new_empty(P, R, F)
    left, right = lines(rows), lines(parts.shared(weight.unsqueeze(-3), rank=2))
    rest = map(lines, (parts.shared(row), parts.flat(residual), parts.shared(key), y))
    aligned = not any(n % ALIGNED for n in (E, left.row, right.row))
    found = tile(P, R, F, rows.dtype, aligned, residual is not None or key is not None)
    with torch.cuda.device_of(rows):
        fused[(programs(found, P, R, F),)](
            left, right, *rest, threshold(p), R, F, E, ACTIVATION=activation, PRECISION=precision(),
            EVEN=E % found.BK == 0, **found._asdict(),
        )  # fmt: skip
    return (y.view(*parts.batch, F),)


def steady(t: Tensor) -> bool:
    """Whether rows ``[..., E]`` are one step apart throughout, so that they are found as one part without a copy."""
    steps = list(zip(t.shape[:-1], t.stride()[:-1], strict=True))
    return all(outer[1] == inner[0] * inner[1] for outer, inner in pairwise(steps) if outer[0] > 1)
