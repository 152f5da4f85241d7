"""What ops on rows share in C++."""

from collections.abc import Sequence

import torch

from ..._core.definition import bits as bits
from ..._core.rows import Maybe as Maybe
from ..._core.rows import Parts as Parts
from ..._core.rows import cotangent as cotangent
from ..._core.rows import passed as passed
from .library import isa
from .library import supports as supports

DETAIL = isa()
OPS = torch.ops.xfn_cpu
NORM, NORM_BACKWARD = OPS.norm.default, OPS.norm_backward.default
SOFTMAX, SOFTMAX_BACKWARD = OPS.softmax.default, OPS.softmax_backward.default
DROPOUT, DROPOUT_BACKWARD = OPS.dropout.default, OPS.dropout_backward.default
SWIGLU, SWIGLU_BACKWARD = OPS.swiglu.default, OPS.swiglu_backward.default
ROTARY, ROTARY_BACKWARD = OPS.rotary.default, OPS.rotary_backward.default

Group = Sequence[Maybe]


def certain(device: str, given: tuple[str, ...]) -> bool:
    return device == "cpu"


def drawn(rows: Group, lines: Group, key: Maybe) -> tuple[list[Maybe], Parts | None]:
    """What rows share, as rows; and the parts. With a key each example is one, for rows are counted within it."""
    lines = [t if t is None or t.dim() == 1 else t.unsqueeze(-2) for t in lines]
    own = lines if key is None else [*lines, key.unsqueeze(-2)]
    return lines, Parts.of(rows, own, inner=None if key is None else 1)


def keys(key: Maybe, parts: Parts) -> Maybe:
    """Keys ``[P, 2]``."""
    return None if key is None else key.expand(*parts.batch[:-1], 2).reshape(-1, 2)


def line_grad(found: Maybe, line: Maybe, like: Maybe, parts: Parts, need: bool) -> Maybe:
    """The gradient of what rows share, in the shape that it came in."""
    if not need or found is None or like is None:
        return None
    grad = parts.shared_grad(found, line, True)
    return None if grad is None else grad.reshape(like.shape)
