"""What ops on rows share in C++."""

import torch

from ..._core.definition import bits as bits
from ..._core.rows import Maybe as Maybe
from ..._core.rows import Parts as Parts
from ..._core.rows import cotangent as cotangent
from .library import isa
from .library import supports as supports

DETAIL = isa()
OPS = torch.ops.xfn_cpu
NORM, NORM_BACKWARD = OPS.norm.default, OPS.norm_backward.default
SOFTMAX, SOFTMAX_BACKWARD = OPS.softmax.default, OPS.softmax_backward.default
DROPOUT, DROPOUT_BACKWARD = OPS.dropout.default, OPS.dropout_backward.default


def certain(device: str, given: tuple[str, ...]) -> bool:
    return device == "cpu"
