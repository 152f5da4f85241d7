"""Attention in Triton, forward, backward and jvp, on a GPU; on the CPU where Triton interprets its kernels.

Keys come in tiles past a tile of queries, with a running maximum; gradients are recomputed from lse. Nothing is added
atomically: each number is summed by one program in one order, so that a call's bits repeat.
"""

import math
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ...._core.dispatch import Call
from .._tile import View
from .config import INTERPRETED
from .forward import forward as _forward
from .gradient import by_bias, by_keys, by_queries
from .launch import Group, Launch, Maybe, fit
from .logits import Operands
from .tangent import tangent

WIDEST = 1024


def supports(call: Call) -> list[str]:
    q, v = call.tensors["q"], call.tensors["v"]
    dense, lse = call.tensors["dense"], call.tensors.get("lse")
    devices = ("cuda", "cpu") if INTERPRETED else ("cuda",)
    widest = max(q.shape[-1], v.shape[-1])
    against = {
        f"it runs on {' or '.join(devices)}, not on {q.device.type}": q.device.type not in devices,
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


def forward(x: Group, c: Group, *, p: float, scale: float) -> tuple[Tensor, Tensor]:
    call = Launch(x, c, p, scale)
    out, lse = call.outputs()
    shape = call.tiles("forward", "V")
    count = triton.cdiv(call.size.M, shape["BM"]) * call.size.H * call.size.examples
    call.clean(_forward, count, shape, call.x, call.rows(out), call.row(lse))
    return out, lse


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float, scale: float) -> list[Maybe]:
    call = Launch(x, c, p, scale, ys=[y, dy])
    M, N, H, R, examples, _ = call.size
    out, dout, lse, dlse = call.rows(y[0]), call.rows(dy[0]), call.row(y[1]), call.row(dy[1])
    wanted = [t if need else None for t, need in zip(x, needs, strict=True)]
    dq, dk, dv = (None if t is None else call.gradient(t) for t in wanted[:3])
    dq = dq if dq is not None else call.gradient(x[0])  # type: ignore[arg-type]
    delta = call.row(call.new(H, M, dtype=torch.float32))
    dslopes = None if wanted[4] is None else call.new(H, M, dtype=torch.float32)

    shape = call.tiles("by_queries", "K")
    count = triton.cdiv(M, shape["BM"]) * H * examples
    call.clean(by_queries, count, shape, call.x, out, lse, dout, dlse, delta, call.rows(dq), call.row(dslopes))
    if dk is not None or dv is not None:
        shape = call.tiles("by_keys", "KV")
        count = triton.cdiv(N, shape["BN"]) * H // R * examples
        call.clean(by_keys, count, shape, call.x, lse, dout, delta, call.rows(dk), call.rows(dv))
    ddense = None if wanted[3] is None else _bias(call, wanted[3], lse, dout, delta)
    grads = [dq, dk, dv, ddense, None if dslopes is None else dslopes.sum(-1)]
    return [fit(grad, t) for grad, t in zip(grads, wanted, strict=True)]


def jvp(x: Group, c: Group, y: Group, tx: Group, *, p: float, scale: float) -> tuple[Tensor, Tensor]:
    call = Launch(x, c, p, scale, [tx], [y])
    tout, tlse = call.outputs()
    shape = call.tiles("tangent", "V")
    count = triton.cdiv(call.size.M, shape["BM"]) * call.size.H * call.size.examples
    moves = Operands(*call.operands(tx), *call.constants(c))
    call.clean(tangent, count, shape, call.x, moves, call.rows(y[0]), call.row(y[1]), call.rows(tout), call.row(tlse))
    return tout, tlse


def _bias(call: Launch, t: Tensor, *rest: object) -> Tensor:
    """The gradient of a dense bias. It shares coefficients along the outer batch, the inner one, heads, rows and
    columns; where it shares but some of the outer batch, examples are summed afterwards."""
    own = (1,) * (len(call.batch) + 3 - t.dim()) + tuple(t.shape[:-3])
    inner, outer = (own[-1], own[:-1]) if own else (1, ())
    outer = outer if math.prod(outer) == 1 else call.batch[:-1]
    shape = (math.prod(outer), inner, *t.shape[-3:])
    settled = math.prod(shape) == t.numel()
    grad = call.like.new_empty(shape, dtype=t.dtype if settled else torch.float32)
    blocks = call.tiles("by_bias")
    count = math.prod(shape[:3]) * triton.cdiv(shape[3], blocks["BM"]) * triton.cdiv(shape[4], blocks["BN"])
    call.run(by_bias, count, blocks, call.x, *rest, View(grad, *grad.stride()), *shape)
    return grad.reshape(*outer, *own[-1:], *t.shape[-3:])
