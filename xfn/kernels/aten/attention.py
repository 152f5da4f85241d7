"""Attention by torch's own fused CPU kernel, where it gives exactly our semantics: forward and backward.

It takes one batch dim and heads before length, ``[B, H, M, K]``, as many key heads as query heads, values as
wide as keys, no mask or the causal one, and no dropout. Its backward takes no gradient of lse. Behind a mask it
multiplies what is hidden by zero, so all must be finite.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..._core.dispatch import Call
from ..._core.kinds import finite
from ..._core.shapes import broadcast

Maybe = Tensor | None
Group = Sequence[Maybe]

FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def supports(call: Call) -> list[str]:
    q, k, v = (call.tensors[name] for name in "qkv")
    given = {name for name, tensor in call.tensors.items() if tensor is not None}
    against = {
        f"it runs on the cpu, not on {q.device.type}": q.device.type != "cpu",
        f"G={k.shape[-2]} key heads are not H={q.shape[-2]}": k.shape[-2] != q.shape[-2],
        f"V={v.shape[-1]} is not K={k.shape[-1]}": v.shape[-1] != k.shape[-1],
        "its float16 is slower than no kernel at all": q.dtype == torch.float16,
        "a tensor is empty": not (q.numel() and k.numel() and v.numel()),
        "it adds no dense bias": "dense" in given,
        "it adds no alibi": "slopes" in given,
        "it drops nothing": "key" in given,
        "of masks it has only bias.causal()": "lo" in given,
        "behind a mask it takes only a positive scale": "hi" in given and call.options["scale"] <= 0,
        "it takes a gradient of out alone": call.member == "backward" and ("d_lse" in given or "d_out" not in given),
    }
    reasons = [reason for reason, holds in against.items() if holds]
    if reasons or "hi" not in given:
        return reasons
    if not _is_causal(call.tensors["hi"], q.shape[-3], k.shape[-3]):
        return ["of masks it has only bias.causal()"]
    floats = [t for name, t in call.tensors.items() if name in given and name != "lse" and t.is_floating_point()]
    return [] if finite(*floats) else ["behind a mask it takes only finite numbers"]


def forward(x: Group, c: Group, *, p: float, scale: float) -> tuple[Tensor, Tensor]:
    batch, (q, k, v) = _joined(x[:3])
    out, lse = FLASH(q, k, v, 0.0, c[1] is not None, scale=scale)
    return _parted(out, batch), lse.contiguous().reshape(*batch, *lse.shape[1:])


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float, scale: float) -> list[Maybe]:
    batch, (q, k, v, out, dout) = _joined([*x[:3], y[0], dy[0]])
    lse = y[1]
    assert lse is not None
    lse = lse.expand(*batch, *lse.shape[-2:]).reshape(q.shape[:3])
    grads = FLASH_BACKWARD(dout, q, k, v, out, lse, 0.0, c[1] is not None, scale=scale)
    return [
        _parted(g, batch).sum_to_size(t.shape).contiguous() if need and t is not None else None
        for g, t, need in zip((*grads, None, None), x, needs, strict=True)
    ]


def _is_causal(hi: Tensor, M: int, N: int) -> bool:
    return hi.dim() == 1 and torch.equal(hi, torch.arange(1, M + 1, device=hi.device).clamp(max=N))


def _joined(tensors: Sequence[Maybe]) -> tuple[tuple[int, ...], list[Tensor]]:
    """Tensors ``[..., L, H, F]`` on their common batch, as ``[B, H, L, F]``."""
    present = [t for t in tensors if t is not None]
    batch = broadcast(t.shape[:-3] for t in present)
    whole = [t.expand(*batch, *t.shape[-3:]).reshape(math.prod(batch), *t.shape[-3:]) for t in present]
    return batch, [(t if t.stride(-1) == 1 else t.contiguous()).transpose(1, 2) for t in whole]


def _parted(t: Tensor, batch: tuple[int, ...]) -> Tensor:
    """``[B, H, L, F]`` as ``[..., L, H, F]``."""
    return t.transpose(1, 2).contiguous().reshape(*batch, t.shape[2], t.shape[1], t.shape[3])
