"""Exact attention."""

from typing import Any

import torch
from torch import Tensor

from .._registry import Strict, ignored
from . import Attention, register_attention
from ._masks import Mask, merged
from .attention_mask import AttentionMask
from .core import scaled_dot_product_attention


@register_attention("scaled_dot_product")
class ScaledDotProduct(Attention, Strict):
    """drop(softmax(q kᵀ / √K + mask)) v.

    Args:
        dropout: the probability of dropping a weight, in training.
        causal: whether a query sees no later key.
        seq_len, to_seq_len: of no consequence.
    """

    supports_key_padding_mask = True

    def __init__(
        self,
        dropout: float = 0.0,
        causal: bool = False,
        seq_len: int | None = None,
        to_seq_len: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        ignored("ScaledDotProduct", kwargs)
        self.attn_drop = torch.nn.Dropout(dropout)
        self.causal, self.seq_len, self.to_seq_len = causal, seq_len, to_seq_len

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
        """Attend, over the mask's entries alone where that costs less.

        Args:
            q, k, v: ``[B · H, M, K]``, ``[B · H, N, K]`` and ``[B · H, N, V]``.
            att_mask, mask: booleans that keep, numbers that are added, an ``AttentionMask`` or a ``SparseCS``.
            key_padding_mask: booleans ``[B, N]``, True where a key is one.
        """
        att_mask = mask if att_mask is None else att_mask
        if self.causal:
            att_mask = self._causally(att_mask, q, k)
        return scaled_dot_product_attention(q, k, v, att_mask, self.attn_drop, key_padding_mask=key_padding_mask)

    def _causally(self, mask: Mask, q: Tensor, k: Tensor) -> Mask:
        causal = AttentionMask.make_causal(q.shape[-2], k.shape[-2], q.device).to_bool()[0]
        if mask is None:
            return causal
        if isinstance(mask, AttentionMask):
            mask = mask.values
        if not isinstance(mask, Tensor):
            return mask & causal
        return merged(mask[..., : q.shape[-2], : k.shape[-2]], causal)
