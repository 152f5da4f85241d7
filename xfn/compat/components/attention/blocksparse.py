"""Attention within the blocks of a layout."""

from typing import Any

import torch
from torch import Tensor

from ....bias import Bias, causal, dense
from ....layout import Layout
from ....ops.blocksparse import blocksparse_attention
from .._registry import Strict, drawn, ignored
from . import Attention, register_attention
from ._masks import Mask
from .attention_mask import AttentionMask


@register_attention("blocksparse")
class BlockSparseAttention(Attention, Strict):
    """softmax(scale · q kᵀ / √K) v over the blocks of a layout.

    Args:
        layout: ``[M / block, N / block]`` or ``[H, M / block, N / block]``, not zero where there is a block.
        block_size: 16, 32, 64 or 128.
        dropout: the probability of dropping a weight, in training.
        num_heads: H.
        causal: whether a query sees no later key.
    """

    requires_head_dimension = True
    supports_key_padding_mask = True

    def __init__(
        self,
        layout: Tensor,
        block_size: int = 16,
        dropout: float = 0.0,
        num_heads: int = 1,
        causal: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        ignored("BlockSparseAttention", kwargs)
        assert block_size in (16, 32, 64, 128), f"a block has 16, 32, 64 or 128 tokens, but block_size={block_size}"
        assert layout.dim() in (2, 3), f"a layout is [M/b, N/b] or [H, M/b, N/b], but got {list(layout.shape)}"
        self.block_size, self.causal, self.num_heads = block_size, causal, num_heads
        self.attn_drop = torch.nn.Dropout(dropout)
        self.layout = layout if layout.dim() == 3 else layout.expand(num_heads, -1, -1)
        self._tiles = Layout(layout != 0, block_size)
        self.requires_same_k_q_dimensions = layout.shape[-2] == layout.shape[-1]

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        att_mask: Mask = None,
        key_padding_mask: Tensor | None = None,
        scale: float = 1.0,
        *args: Any,
        mask: Mask = None,
        **kwargs: Any,
    ) -> Tensor:
        """Attend, ``[B, H, M, V]``; what sees nothing gives zeros.

        Args:
            q, k, v: ``[B, H, M, K]``, ``[B, H, N, K]`` and ``[B, H, N, V]``, as long as the layout says.
            att_mask, mask: within the blocks, booleans that keep; ones and zeros, of which ones keep; or, where any
                number is negative, what is added.
            key_padding_mask: booleans ``[B, N]``, True where a key is one.
            scale: of the logits, once more.
        """
        M, N = self._tiles.M, self._tiles.N
        assert (q.shape[-2], k.shape[-2]) == (M, N), (
            f"the layout has {M} queries and {N} keys, but there are {q.shape[-2]} and {k.shape[-2]}"
        )
        if self._tiles.blocks.device != q.device:
            self._tiles = self._tiles.to(q.device)
        bias = causal() if self.causal else Bias(())
        if (seen := self._kept(mask if att_mask is None else att_mask)) is not None:
            bias = bias & dense(seen if seen.dtype == torch.bool else seen.to(q.dtype))
        if key_padding_mask is not None:
            bias = bias & dense(key_padding_mask[:, None, None])
        p = self.attn_drop.p if self.training else 0.0
        scale, key = scale * int(q.shape[-1]) ** -0.5, drawn(self, p, q.device)
        q, k, v = (t.movedim(-3, -2) for t in (q, k, v))
        return blocksparse_attention(self._tiles, q, k, v, bias, p, scale, key=key).movedim(-2, -3)

    @staticmethod
    def _kept(mask: Any) -> Tensor | None:
        if isinstance(mask, AttentionMask):
            return mask.values.unsqueeze(1)
        if mask is None:
            return None
        found: Tensor = mask if isinstance(mask, Tensor) else mask.csr.to_mask()
        found = found.unsqueeze(1) if found.dim() == 3 else found
        if not found.is_floating_point():
            return found if found.dtype == torch.bool else found > 0
        keeping = torch.zeros_like(found).masked_fill(found == 0, -torch.inf)
        return torch.where((found < 0).any(), found, keeping)
