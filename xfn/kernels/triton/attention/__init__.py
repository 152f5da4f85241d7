"""Attention in Triton, every member of the family, on a GPU; on the CPU where Triton interprets its kernels.

Keys come in tiles past a tile of queries, with a running maximum; gradients are recomputed from lse. Nothing is added
atomically: each number is summed by one program in one order, so that a call's bits repeat.
"""

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
import triton
from torch import Tensor

from ...._core.dispatch import Call
from .._target import DEVICES
from .._tile import View
from .bend import bend
from .config import on_hopper
from .curvature import turn_bias, turn_keys, turn_queries
from .forward import forward as _forward
from .gradient import by_bias, by_keys, by_queries
from .launch import Group, Launch, Maybe, fit
from .logits import Extent
from .tangent import tangent

WIDEST = 1024


def supports(call: Call) -> list[str]:
    q, v = call.tensors["q"], call.tensors["v"]
    dense, lse = call.tensors["dense"], call.tensors.get("lse")
    widest = max(q.shape[-1], v.shape[-1])
    against = {
        f"it runs on {' or '.join(DEVICES)}, not on {q.device.type}": q.device.type not in DEVICES,
        f"{str(q.dtype).removeprefix('torch.')} is not float32, bfloat16 or float16": q.dtype == torch.float64,
        f"{widest} features are more than {WIDEST}": widest > WIDEST,
        "a tensor is empty": any(t is not None and not t.numel() for t in call.tensors.values()),
        "it adds no integers": dense is not None and not (dense.is_floating_point() or dense.dtype == torch.bool),
    }
    reasons = [reason for reason, holds in against.items() if holds]
    if not reasons and lse is not None and dense is not None and dense.is_floating_point():
        lost = bool(((lse < -1e30) & (lse != -torch.inf)).any())
        reasons += ["a bias hides whole rows by numbers so large that lse has lost their sum"] * lost
    return reasons


def forward(x: Group, c: Group, *, p: float, scale: float, block: float = 0.0) -> tuple[Tensor, Tensor]:
    call = Launch(x, c, p, scale, block)
    y = call.outputs()
    if on_hopper():
        hopper = import_module(f"{__name__}.hopper")  # Gluon, which nobody else needs
        if hopper.fits(call):
            hopper.forward(call, call.pair(y))
            return y
    shape = call.tiles("forward", "V")
    call.clean(_forward, call.over("M", shape), shape, call.x, call.pair(y))
    return y


def backward(
    x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float, scale: float, block: float = 0.0
) -> list[Maybe]:
    call = Launch(x, c, p, scale, block, ys=[y, dy])
    delta = call.row(call.new(call.size.H, call.size.M, dtype=torch.float32))
    return _gradients(call, x, needs, (by_queries, by_keys, by_bias), call.x, call.pair(y), call.pair(dy), delta)


def jvp(
    x: Group, c: Group, y: Group, tx: Group, *, p: float, scale: float, block: float = 0.0
) -> tuple[Tensor, Tensor]:
    call = Launch(x, c, p, scale, block, [tx], [y])
    ty = call.outputs()
    shape = call.tiles("tangent", "V")
    call.clean(tangent, call.over("M", shape), shape, call.x, call.moves(tx), call.pair(y), call.pair(ty))
    return ty


def hvp(
    x: Group, c: Group, y: Group, ty: Group, dy: Group, tx: Group, tdy: Group, needs: Sequence[bool],
    *, p: float, scale: float, block: float = 0.0,
) -> list[Maybe]:  # fmt: skip
    call = Launch(x, c, p, scale, block, [tx], [y, ty, dy, tdy])
    delta, tdelta = (call.row(call.new(call.size.H, call.size.M, dtype=torch.float32)) for _ in range(2))
    args = call.x, call.moves(tx), *map(call.pair, (y, ty, dy, tdy)), delta, tdelta
    return _gradients(call, x, needs, (turn_queries, turn_keys, turn_bias), *args)


def jvp2(
    x: Group,
    c: Group,
    y: Group,
    uy: Group,
    wy: Group,
    ux: Group,
    wx: Group,
    *,
    p: float,
    scale: float,
    block: float = 0.0,
) -> tuple[Tensor, Tensor]:
    call = Launch(x, c, p, scale, block, [ux, wx], [y, uy, wy])
    ty = call.outputs()
    shape = call.tiles("bend", "V")
    args = call.x, call.moves(ux), call.moves(wx), *map(call.pair, (y, uy, wy, ty))
    call.clean(bend, call.over("M", shape), shape, *args)
    return ty


def _gradients(call: Launch, x: Group, needs: Sequence[bool], kernels: Sequence[Any], *args: object) -> list[Maybe]:
    """What three kernels sum: over keys, which is first for it leaves numbers of rows behind in args; over queries; and
    over what shares a bias."""
    wanted = [t if need else None for t, need in zip(x, needs, strict=True)]
    dq, dk, dv = (None if t is None else call.gradient(t) for t in wanted[:3])
    dq = dq if dq is not None else call.gradient(x[0])  # type: ignore[arg-type]
    dslopes = None if wanted[4] is None else call.new(call.size.H, call.size.M, dtype=torch.float32)
    queries, keys, bias = kernels

    shape = call.tiles(queries.__name__, "K")
    call.clean(queries, call.over("M", shape), shape, *args, call.rows(dq), call.row(dslopes))
    if dk is not None or dv is not None:
        shape = call.tiles(keys.__name__, "KV")
        call.clean(keys, call.over("N", shape), shape, *args, call.rows(dk), call.rows(dv))
    ddense = None if wanted[3] is None else _bias(call, bias, wanted[3], *args)
    grads = [dq, dk, dv, ddense, None if dslopes is None else dslopes.sum(-1)]
    return [fit(grad, t) for grad, t in zip(grads, wanted, strict=True)]


def _bias(call: Launch, kernel: Any, t: Tensor, *args: object) -> Tensor:
    """The gradient of a dense bias. It shares coefficients along the outer batch, the inner one, heads, rows and
    columns; where it shares but some of the outer batch, examples are summed afterwards."""
    own = (1,) * (len(call.batch) + 3 - t.dim()) + tuple(t.shape[:-3])
    inner, outer = (own[-1], own[:-1]) if own else (1, ())
    outer = outer if math.prod(outer) == 1 else call.batch[:-1]
    shape = (math.prod(outer), inner, *t.shape[-3:])
    settled = math.prod(shape) == t.numel()
    grad = call.like.new_empty(shape, dtype=t.dtype if settled else torch.float32)
    blocks = call.tiles(kernel.__name__)
    count = math.prod(shape[:3]) * triton.cdiv(shape[3], blocks["BM"]) * triton.cdiv(shape[4], blocks["BN"])
    call.run(kernel, count, blocks, *args, View(grad, *grad.stride()), Extent(*shape))
    return grad.reshape(*outer, *own[-1:], *t.shape[-3:])
