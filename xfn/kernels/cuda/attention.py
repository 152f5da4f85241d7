"""Attention of few features in CUDA, value and gradient: see xfn/csrc/cuda/attention.cuh."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..._core.dispatch import Call
from ..._core.entries import Grads, Group, batched, fit
from ..._core.philox import threshold
from ..._core.shapes import Shape
from .products import DETAIL as DETAIL
from .products import OPS, launch, line, refused

WIDEST = 32
FEW = 8
"""Features up to which these kernels are the first choice, where float32 is multiplied exactly: Triton multiplies such
numbers one by one, too, but sixteen features at least, and all others on tensor cores."""


def supports(call: Call) -> list[str]:
    return refused(call, WIDEST) + ["it adds no dense bias"] * (call.tensors["dense"] is not None)


def worth(call: Call) -> bool:
    q, v = call.tensors["q"], call.tensors["v"]
    exact = q.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return exact and max(q.shape[-1], v.shape[-1]) <= FEW


def forward(x: Group, c: Group, *, p: float, scale: float) -> tuple[Tensor, Tensor]:
    batch, (q, *rest), _ = _flat(x, c)
    (M, H), V, B = q.shape[1:3], rest[1].shape[-1], math.prod(batch)
    out, lse = q.new_empty(B, M, H, V), q.new_empty(B, H, M, dtype=torch.float32)
    launch(OPS.attend_forward, q, q, *rest, out, lse, scale, _threshold(c, p))
    return out.reshape(*batch, M, H, V), lse.reshape(*batch, H, M)


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float, scale: float) -> Grads:
    batch, given, (out, lse, dout, dlse) = _flat(x, c, *y, *dy)
    q, B, (M, H) = given[0], math.prod(batch), given[0].shape[1:3]
    delta = q.new_empty(B, H, M, dtype=torch.float32)
    grads = [_gradient(t, B) if t is not None and need else None for t, need in zip(x[:3], needs, strict=False)]
    shifts = torch.empty_like(delta) if needs[4] else None
    numbers = scale, _threshold(c, p)
    launch(OPS.attend_queries, q, *given, out, lse, dout, dlse, delta, grads[0], shifts, *numbers)
    if needs[1] or needs[2]:
        launch(OPS.attend_keys, q, *given, lse, dout, delta, *grads[1:], *numbers)
    found = [*grads, None, None if shifts is None else shifts.sum(-1)]
    return fit([None if g is None else g.reshape(*batch, *g.shape[1:]) for g in found], x, needs)


def _flat(x: Group, c: Group, *ys: Tensor | None) -> tuple[Shape, list[Tensor], list[Tensor]]:
    """The batch; operands and constants as the ops take them, and outputs and their cotangents."""
    slopes = None if x[4] is None else x[4].float().unsqueeze(-1)
    bounds = (None if t is None else t.long() for t in c[:2])
    ranks = (3, 3, 3, 2, 1, 1, 1, *(3, 2, 3, 2)[: len(ys)])
    batch, found = batched(*zip((*x[:3], slopes, *bounds, c[2], *ys), ranks, strict=True))
    found = [t if t is None or i in (4, 5) else line(t) for i, t in enumerate(found)]  # bounds go by any stride
    return batch, found[:7], found[7:]


def _gradient(t: Tensor, examples: int) -> Tensor:
    """Where the gradient of an operand is written: in its dtype, unless examples are still to be summed."""
    shape = examples, *t.shape[-3:]
    return t.new_empty(shape, dtype=t.dtype if math.prod(shape) == t.numel() else torch.float32)


def _threshold(c: Group, p: float) -> int:
    return 0 if c[2] is None else threshold(p)
