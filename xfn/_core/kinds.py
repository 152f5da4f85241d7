"""Dtypes and devices: what may meet in one call, and what autocast makes of it."""

from collections.abc import Mapping

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which logits, softmax and sums are kept: float32, or float64 where that came in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype that ``torch.autocast`` asks for, as torch's own matmuls take them."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


def check_kinds(alike: Mapping[str, Tensor], beside: Mapping[str, Tensor | None]) -> None:
    """``alike`` share one floating dtype and one device; ``beside`` are on that device."""
    first, head = next(iter(alike.items()))
    if head.dtype not in FLOATS:
        raise TypeError(f"{first} is {head.dtype}, but must be one of {', '.join(map(str, FLOATS))}")
    for name, tensor in alike.items():
        if tensor.dtype != head.dtype:
            raise TypeError(f"{first} is {head.dtype}, but {name} is {tensor.dtype}: write {name}.to({first}.dtype)")
    for name, other in {**alike, **beside}.items():
        if other is not None and other.device != head.device:
            raise ValueError(
                f"{first} is on {head.device}, but {name} is on {other.device}: write {name}.to({first}.device)"
            )


def check_probability(p: float) -> None:
    if not 0 <= p < 1:
        raise ValueError(f"p={p} is no probability of dropping: it must lie in [0, 1)")
