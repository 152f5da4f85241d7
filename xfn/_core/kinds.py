"""Dtypes and devices: what may meet in one call, and what autocast makes of it."""

import math
from collections.abc import Mapping
from functools import reduce
from numbers import Integral

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FAR = 2**62
"""Farther than any key; a place and as far again is still an int64."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which logits, softmax and sums are kept: float32, or float64 where that came in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def finite(*tensors: Tensor) -> bool:
    """Whether every number is; a sum tells, for what is not finite cannot cancel."""
    return bool(sum(t.sum(dtype=wide(t.dtype)) for t in tensors).isfinite())  # type: ignore[union-attr]


def lost(lse: Tensor) -> bool:
    """Whether one is so large that the sum in it is rounded away: numbers beside it lie 1/16 apart, or more."""
    return bool(((lse.abs() >= 2**-4 / torch.finfo(lse.dtype).eps) & lse.isfinite()).any())


def broken(*tensors: Tensor) -> Tensor:
    """Rows ``[...]`` of ``[..., F]`` that are not finite in any of the tensors."""
    return reduce(torch.logical_or, (~t.isfinite().all(-1) for t in tensors))


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype that ``torch.autocast`` asks for, as torch's own matmuls take them."""
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


def check_tensors(tensors: Mapping[str, object]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}, but must be a torch.Tensor")


def check_kinds(alike: Mapping[str, Tensor], beside: Mapping[str, Tensor | None]) -> None:
    """``alike`` share one floating dtype and one device; ``beside`` are on that device."""
    first, head = next(iter(alike.items()))
    if head.dtype not in FLOATS:
        raise TypeError(f"{first} is {head.dtype}, but must be one of {', '.join(map(str, FLOATS))}")
    for name, tensor in alike.items():
        if tensor.dtype != head.dtype:
            raise TypeError(f"{first} is {head.dtype}, but {name} is {tensor.dtype}: write {name}.to({first}.dtype)")
    for name, other in {**alike, **beside}.items():
        if isinstance(other, Tensor) and other.device != head.device:
            raise ValueError(
                f"{first} is on {head.device}, but {name} is on {other.device}: write {name}.to({first}.device)"
            )


def is_integer(value: object) -> bool:
    """An integer, or a tensor of them; True and False are none."""
    if isinstance(value, Tensor):
        return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    return isinstance(value, Integral | torch.SymInt) and not isinstance(value, bool)


def check_number(name: str, value: object, instead: str = "") -> float:
    """``value`` as a finite number. A tensor is refused, for no gradient would flow into it."""
    if isinstance(value, Tensor):
        raise TypeError(f"{name} is a number, but got a tensor, whose gradient would be lost{instead}")
    if not isinstance(value, int | float | torch.SymInt | torch.SymFloat):
        raise TypeError(f"{name} is a number, but got {value!r}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name}={value} is not finite")
    return float(value)


def check_probability(p: object) -> float:
    number = check_number("p", p)
    if not 0 <= number < 1:
        raise ValueError(f"p={p} is no probability of dropping: it must lie in [0, 1)")
    return number
