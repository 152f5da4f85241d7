"""What is shared by kernels in plain torch of ops on rows: they take every call, on every device."""

from torch import Tensor

from ..._core.dispatch import Call
from ..._core.rows import Maybe as Maybe
from ..._core.rows import cotangent as cotangent


def supports(call: Call) -> list[str]:
    return []


def fit(grad: Tensor, t: Maybe, need: bool) -> Maybe:
    """A gradient in the shape and dtype of its operand, where it is needed."""
    return None if t is None or not need else grad.sum_to_size(t.shape).to(t.dtype).contiguous()
