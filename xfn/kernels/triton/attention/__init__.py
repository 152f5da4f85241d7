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
from ...._core.kinds import lost
from ...._core.rows import fit
from .._target import DEVICES
from .._tile import View
from .bend import bend
from .config import on_hopper
from .curvature import turn, turn_bias
from .forward import forward as _forward
from .gradient import by_bias, deltas, gradient
from .launch import Group, Launch, Maybe
from .logits import Extent, Outputs
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
        reasons += ["a bias hides whole rows by numbers so large that lse has lost their sum"] * lost(lse)
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
    call.clean(_forward, call.over("M", shape), shape, call.x, None, call.pair(y), None)
    return y


def dual(x: Group, c: Group, tx: Group, *, p: float, scale: float, block: float = 0.0) -> tuple[Tensor, ...]:
    call = Launch(x, c, p, scale, block, [tx])
    y, ty = call.outputs(), call.outputs()
    shape = call.tiles("dual", "V")
    call.clean(_forward, call.over("M", shape), shape, call.x, call.moves(tx), call.pair(y), call.pair(ty))
    return *y, *ty


def backward(
    x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float, scale: float, block: float = 0.0
) -> list[Maybe]:
    call = Launch(x, c, p, scale, block, ys=[y, dy])
    of_y, of_dy = call.pair(y), call.pair(dy)
    args = call.x, of_y, of_dy, *_deltas(call, of_y, of_dy)
    return _gradients(call, x, needs, "by", (gradient, by_bias), *args)


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
    of_y, of_ty, of_dy, of_tdy = map(call.pair, (y, ty, dy, tdy))
    found = _deltas(call, of_y, of_dy, of_ty, of_tdy)
    args = call.x, call.moves(tx), of_y, of_ty, of_dy, of_tdy, *found
    return _gradients(call, x, needs, "turn", (turn, turn_bias), *args)


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


def _deltas(call: Launch, y: Outputs, dy: Outputs, *moved: Outputs) -> list[View]:
    """δ, and with the tangents of both its own."""
    found = [call.row(call.new(call.size.H, call.size.M, dtype=torch.float32)) for _ in (y, *moved[1:])]
    shape = call.tiles("deltas")
    programs = triton.cdiv(call.size.M, shape["BM"]) * call.size.H * call.size.examples
    call.run(deltas, programs, shape, y, dy, *(moved or (None, None)), *found, *[None] * (2 - len(found)))
    return found


def _gradients(
    call: Launch, x: Group, needs: Sequence[bool], name: str, kernels: tuple[Any, Any], *args: object
) -> list[Maybe]:
    """What a kernel sums over keys and over queries, in one launch, and another over what shares a bias."""
    wanted = [t if need else None for t, need in zip(x, needs, strict=True)]
    dq, dk, dv = (None if t is None else call.gradient(t) for t in wanted[:3])
    dslopes = None if wanted[4] is None else call.new(call.size.H, call.size.M, dtype=torch.float32)
    if dslopes is not None and dq is None:
        dq = call.gradient(call.like)
    both, bias = kernels
    of_queries = None if dq is None else f"{name}_queries"
    of_keys = None if dk is None and dv is None else f"{name}_keys"
    if of_queries or of_keys:
        made = call.rows(dq), call.row(dslopes), call.rows(dk), call.rows(dv)
        call.clean(both, *call.sides(of_queries, of_keys), *args, *made)
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
