"""Every token sees those that chance chose for it."""

from typing import Any

import torch
from torch import Tensor

from ....parts.attention.random_pattern import RandomPattern
from . import register_attention
from ._folded import Part
from ._masks import Mask
from .global_tokens import past


@register_attention("random")
class RandomAttention(Part):
    """Attention over a pattern that keeps each entry with probability ``r``; a row without one gives zeros.

    Args:
        dropout: the probability of dropping a weight, in training.
        causal: whether a query sees no later key.
        r: the density.
        constant_masking: whether the pattern stays; else every call draws its own.
        force_sparsity: of no consequence.
    """

    supports_attention_mask = True
    supports_key_padding_mask = True

    def __init__(
        self,
        dropout: float = 0.0,
        causal: bool = False,
        r: float = 0.01,
        constant_masking: bool = True,
        force_sparsity: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(None, dropout, **kwargs)
        self.causal, self.r, self.constant_masking = causal, r, constant_masking
        self._redraw()

    def _redraw(self) -> None:
        self.part = RandomPattern(self.r, int(torch.randint(1 << 31, ())), self.dropout)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        att_mask: Mask = None,
        key_padding_mask: Tensor | None = None,
        *args: Any,
        mask: Mask = None,
        **kwargs: Any,
    ) -> Tensor:
        """As of every attention."""
        if not self.constant_masking:
            self._redraw()
        att_mask = mask if att_mask is None else att_mask
        return super().forward(q, k, v, past(q, k, att_mask) if self.causal else att_mask, key_padding_mask)
