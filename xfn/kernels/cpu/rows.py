"""What ops on rows share in C++."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._core.dispatch import Call
from ..._core.rows import Parts as Parts
from .library import isa

DETAIL = isa()
OPS = torch.ops.xfn_cpu
NORM, NORM_BACKWARD = OPS.norm.default, OPS.norm_backward.default
SOFTMAX, SOFTMAX_BACKWARD = OPS.softmax.default, OPS.softmax_backward.default
DROPOUT, DROPOUT_BACKWARD = OPS.dropout.default, OPS.dropout_backward.default
Maybe = Tensor | None


def supports(call: Call) -> list[str]:
    device = next(iter(call.tensors.values())).device.type
    return [] if device == "cpu" else [f"it runs on the cpu, not on {device}"]


def certain(device: str, given: tuple[str, ...]) -> bool:
    return device == "cpu"


def bits(needs: Sequence[bool]) -> int:
    return sum([1 << i for i, need in enumerate(needs) if need])
