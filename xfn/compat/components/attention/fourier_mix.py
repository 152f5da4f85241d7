"""Tokens mixed by a Fourier transform."""

from typing import Any

from torch import Tensor

from ....parts.attention.fourier_mix import FourierMix as _FourierMix
from .._registry import Strict, drawn, ignored
from . import Attention, register_attention


@register_attention("fourier_mix")
class FourierMix(Attention, Strict):
    """drop(Re F q), over positions and the features of a head."""

    requires_input_projection = False
    supports_attention_mask = False

    def __init__(self, dropout: float = 0.0, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        ignored("FourierMix", kwargs)
        self.dropout, self.part = dropout, _FourierMix(dropout)

    def forward(self, q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Of ``q [B · H, S, K]`` alone."""
        return self.part.apply({}, q, key=drawn(self, self.dropout, q.device))
