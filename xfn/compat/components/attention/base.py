"""What attentions of xformers.components have in common."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._registry import given


@dataclass
class AttentionConfig:
    """What every attention can be configured with."""

    name: str
    dropout: float


class Attention(torch.nn.Module):
    """An attention of ``q``, ``k`` and ``v [B · H, S, K]``; its flags say what it wants of a multi-head wrapper.

    ``requires_head_dimension``: it takes ``[B, H, S, K]``; ``requires_skip_multi_head``: it takes ``[B, S, E]``.
    """

    _causal_mask: Any = None
    requires_input_projection = True
    requires_head_dimension = False
    requires_separate_masks = False
    requires_same_k_q_dimensions = False
    requires_skip_multi_head = False
    requires_squared_context = False
    supports_attention_mask = True
    supports_key_padding_mask = False

    def __init__(self, dropout: float | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    @classmethod
    def from_config(cls, config: Any) -> Any:
        """The attention of a config, whose fields are arguments; those that are None are left out."""
        return cls(**given(config, cls))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError
