"""A vector for every place, and perhaps a token before all others."""

from typing import Any

import torch
from torch import Tensor

from ....ops.learned import learned
from .._registry import Strict, ignored
from . import PositionEmbedding, register_positional_embedding


@register_positional_embedding("learnable")
class LearnablePositionalEmbedding(PositionEmbedding, Strict):
    """x plus a vector for every place.

    Args:
        seq_len: how many places.
        dim_model: E.
        add_class_token: whether one more token, which is learned, is put before all others.
    """

    def __init__(self, seq_len: int, dim_model: int, add_class_token: bool = False, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        ignored("LearnablePositionalEmbedding", kwargs)
        self.pos_emb = torch.nn.Parameter(torch.randn(1, seq_len + add_class_token, dim_model) * 0.02)
        self.class_token = torch.nn.Parameter(torch.zeros(dim_model)) if add_class_token else None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, E]``, or one more with a class token."""
        params: Any = {"position": self.pos_emb.squeeze(0)}
        if self.class_token is not None:
            params["token"] = self.class_token
        E = self.pos_emb.shape[-1]
        x = x.unsqueeze(-1).expand(*x.shape, E) if x.dim() == 2 else x
        return learned(params, x if x.is_floating_point() else x.float())
