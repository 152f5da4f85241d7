"""Softmax in plain torch:  dx = y (dy − Σ y dy)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._core.kinds import wide
from .rows import Maybe, cotangent, fit
from .rows import supports as supports

Group = Sequence[Maybe]


def hidden(x: Group, c: Group) -> tuple[Tensor, Tensor]:
    """x with −∞ for what a row may not see, and which rows see anything."""
    (given,), (lo, hi) = x, c
    assert given is not None
    n = torch.arange(given.shape[-1], device=given.device)
    logits = given.to(wide(given.dtype))
    if lo is not None:
        logits = torch.where(n >= lo.unsqueeze(-1), logits, -torch.inf)
    if hi is not None:
        logits = torch.where(n < hi.unsqueeze(-1), logits, -torch.inf)
    return logits, (logits != -torch.inf).any(-1, keepdim=True)


def forward(x: Group, c: Group) -> tuple[Tensor]:
    logits, some = hidden(x, c)
    return (torch.where(some, logits.softmax(-1), 0).to(x[0].dtype).contiguous(),)  # type: ignore[union-attr]


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool]) -> list[Maybe]:
    assert y[0] is not None
    out, d = (t.to(wide(y[0].dtype)) for t in (y[0], cotangent(dy[0], y[0])))
    return [fit(out * (d - (out * d).sum(-1, keepdim=True)), x[0], needs[0])]
