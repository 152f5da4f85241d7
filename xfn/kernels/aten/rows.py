"""What is shared by kernels in plain torch of ops on rows: they take every call, on every device."""

import torch
from torch import Tensor

from ..._core.dispatch import Call

Maybe = Tensor | None


def supports(call: Call) -> list[str]:
    return []


def cotangent(dy: Maybe, y: Maybe) -> Tensor:
    """dy, or zeros like y."""
    assert y is not None
    return torch.zeros_like(y) if dy is None else dy


def fit(grad: Tensor, t: Maybe, need: bool) -> Maybe:
    """A gradient in the shape and dtype of its operand, where it is needed."""
    return None if t is None or not need else grad.sum_to_size(t.shape).to(t.dtype).contiguous()
