"""Each place of a square takes the mean of its neighbours."""

from typing import Any

from torch import Tensor

from ....parts.attention.pooling import Pooling as _Pooling
from .._registry import Strict, ignored
from . import Attention, register_attention


@register_attention("pooling")
class Pooling(Attention, Strict):
    """mean(x near by) − x, over a square.

    Args:
        pool_size: rows and columns of the neighbourhood, an odd number.
        stride: 1, for there are as many places behind it.
        padding: ``pool_size // 2``, for the same reason.
    """

    requires_skip_multi_head = True
    requires_input_projection = False
    requires_squared_context = True
    requires_same_k_q_dimensions = True
    supports_attention_mask = False

    def __init__(self, pool_size: int = 3, stride: int = 1, padding: int | None = None, *args: Any, **kwargs: Any):
        super().__init__()
        ignored("Pooling", kwargs)
        assert stride == 1, f"stride={stride} would change how many places there are"
        assert padding in (None, pool_size // 2), f"padding={padding} would change how many places there are"
        self.part = _Pooling(pool_size)

    def forward(self, q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Of ``q [B, S, E]`` alone."""
        return self.part.apply({}, q)
