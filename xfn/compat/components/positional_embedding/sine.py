"""Sines and cosines, added."""

from typing import Any

from torch import Tensor

from ....ops.sine import sine
from .._registry import Strict, ignored
from . import PositionEmbedding, register_positional_embedding


@register_positional_embedding("sine")
class SinePositionalEmbedding(PositionEmbedding, Strict):
    """x plus sines and cosines of where it stands; ``[B, S]`` gets features first, each as many times as there are."""

    def __init__(self, dim_model: int, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        ignored("SinePositionalEmbedding", kwargs)
        self.dim_model = dim_model

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, E]``."""
        x = x.unsqueeze(-1).expand(*x.shape, self.dim_model) if x.dim() == 2 else x
        return sine(x if x.is_floating_point() else x.float())
