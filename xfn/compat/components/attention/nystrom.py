"""Attention by way of landmarks."""

from typing import Any

import torch
from torch import Tensor

from ....bias import causal as causally
from ....ops.attention import attention
from ....parts.attention.nystrom import Nystrom
from .._registry import ignored
from . import register_attention
from ._folded import Part, present
from ._masks import Mask


@register_attention("nystrom")
class NystromAttention(Part):
    """Attention through ``num_landmarks`` means of segments; exact where it is causal, which means cannot be.

    Args:
        dropout: the probability of dropping from the result, in training.
        num_heads: H, of which each has its own convolution.
        num_landmarks: how many means.
        causal: whether a query sees no later key; then the attention is exact.
        use_razavi_pinverse: whether the pseudo-inverse is found by iteration.
        pinverse_original_init: whether that starts from the greatest column sum of the whole batch.
        inv_iterations: its steps.
        v_skip_connection: a module whose result, of the values ``[B, H, S, K]``, is added.
        conv_kernel_size: of a convolution of the values along the sequence, which is added; an odd number.
    """

    supports_key_padding_mask = True
    requires_separate_masks = True

    def __init__(
        self,
        dropout: float = 0.0,
        num_heads: int = 1,
        num_landmarks: int = 64,
        landmark_pooling: None = None,
        causal: bool = False,
        use_razavi_pinverse: bool = True,
        pinverse_original_init: bool = False,
        inv_iterations: int = 6,
        v_skip_connection: torch.nn.Module | None = None,
        conv_kernel_size: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if landmark_pooling is not None:
            raise NotImplementedError("landmarks are means of segments: leave landmark_pooling out")
        part = Nystrom(num_landmarks, not use_razavi_pinverse, inv_iterations, pinverse_original_init, None, dropout)
        super().__init__(part, dropout, **kwargs)
        self.num_heads, self.causal, self.skip_connection = num_heads, causal, v_skip_connection
        self.attn_drop = torch.nn.Dropout(dropout)
        if v_skip_connection is None and conv_kernel_size is not None:
            assert conv_kernel_size % 2, f"conv_kernel_size={conv_kernel_size} would change the length"
            kernel, around = (conv_kernel_size, 1), (conv_kernel_size // 2, 0)
            self.skip_connection = torch.nn.Conv2d(num_heads, num_heads, kernel, 1, around, 1, num_heads, bias=False)

    def key(self, q: Tensor) -> None:
        """The sum with the values is what drops."""

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
        """As of every attention; masks are ignored, with a warning."""
        ignored("NystromAttention", present(att_mask=att_mask, mask=mask))
        if self.causal:
            assert key_padding_mask is None, "causal attention through landmarks takes no key padding"
            y = attention(q.unsqueeze(-2), k.unsqueeze(-2), v.unsqueeze(-2), causally()).squeeze(-2)
        else:
            if key_padding_mask is not None and key_padding_mask.dim() == 3:
                key_padding_mask = key_padding_mask.squeeze(1)
            y = super().forward(q, k, v, None, key_padding_mask)
        if self.skip_connection is not None:
            y = y + self._skipped(v.unflatten(0, (-1, self.num_heads))).flatten(0, 1)
        return self.attn_drop(y)  # type: ignore[no-any-return]

    def _skipped(self, v: Tensor) -> Tensor:
        conv: Any = self.skip_connection
        if not (self.causal and isinstance(conv, torch.nn.Conv2d)):
            return conv(v)  # type: ignore[no-any-return]
        J = conv.kernel_size[0]
        past = torch.arange(J, device=v.device)[:, None] <= J // 2
        return torch.nn.functional.conv2d(v, conv.weight * past, padding=(J // 2, 0), groups=self.num_heads)
