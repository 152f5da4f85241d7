"""A few tokens see all and are seen by all."""

from typing import Any

from torch import Tensor

from ....parts.attention.global_tokens import GlobalTokens
from . import register_attention
from ._folded import Part
from ._masks import Mask, merged
from .attention_mask import AttentionMask


@register_attention("global")
class GlobalAttention(Part):
    """Attention where the query or the key is one of a few.

    Args:
        dropout: the probability of dropping a weight, in training.
        attention_query_mask: booleans ``[S, 1]``, True for those few.
        causal: whether a query sees no later key.
        force_sparsity: of no consequence.
    """

    requires_same_k_q_dimensions = True
    supports_attention_mask = True
    supports_key_padding_mask = True

    def __init__(
        self,
        dropout: float = 0.0,
        attention_query_mask: Tensor | None = None,
        causal: bool = False,
        force_sparsity: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        assert attention_query_mask is not None, "global wants attention_query_mask, which tokens see all"
        assert attention_query_mask.shape[1:] == (1,), (
            f"attention_query_mask is [S, 1], but got {list(attention_query_mask.shape)}"
        )
        tokens = attention_query_mask.flatten().nonzero().flatten().tolist()
        super().__init__(GlobalTokens(tokens, dropout), dropout, **kwargs)
        self.causal, self.seq_len = causal, len(attention_query_mask)

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
        att_mask = mask if att_mask is None else att_mask
        if self.causal:
            att_mask = past(q, k, att_mask)
        return super().forward(q, k, v, att_mask, key_padding_mask)


def past(q: Tensor, k: Tensor, mask: Any) -> Tensor:
    """A mask that hides the future too."""
    causal = AttentionMask.make_causal(q.shape[-2], k.shape[-2], q.device).to_bool()[0]
    if mask is None:
        return causal
    given: Tensor = (
        mask if isinstance(mask, Tensor) else mask.values if isinstance(mask, AttentionMask) else mask & causal
    )
    return merged(given[..., : q.shape[-2], : k.shape[-2]], causal)
