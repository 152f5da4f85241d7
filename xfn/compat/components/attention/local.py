"""Every token sees those near it."""

from typing import Any

from ....parts.attention.local import Local
from . import register_attention
from ._folded import Part


@register_attention("local")
class LocalAttention(Part):
    """Attention within a window.

    Args:
        dropout: the probability of dropping a weight, in training.
        causal: whether the window lies in the past; then a query sees itself and ``window_size`` keys before.
        window_size: how many keys a query sees, itself in their middle: an odd number, unless causal.
        force_sparsity: of no consequence.
    """

    supports_attention_mask = True
    supports_key_padding_mask = True

    def __init__(
        self,
        dropout: float = 0.0,
        causal: bool = False,
        window_size: int = 5,
        force_sparsity: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        assert causal or window_size % 2 == 1, f"window_size={window_size} has no middle"
        super().__init__(Local(window_size + 1 if causal else window_size, causal, dropout), dropout, **kwargs)
        self.causal, self.window_size = causal, window_size
