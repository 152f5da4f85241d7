"""Attention to mixtures of the keys."""

from typing import Any

import torch
from torch import Tensor

from ...._core.errors import ShapeError
from ....parts.attention.linformer import Linformer
from . import register_attention
from ._folded import Part


@register_attention("linformer")
class LinformerAttention(Part):
    """Attention to ``k`` mixtures of the keys of up to ``seq_len`` tokens; ``k`` is a quarter of them by default."""

    requires_same_k_q_dimensions = True
    supports_key_padding_mask = True

    def __init__(self, dropout: float = 0.0, seq_len: int = 0, k: int | None = None, *args: Any, **kwargs: Any) -> None:
        assert seq_len > 0, "linformer wants seq_len, how many tokens there are at most"
        self_k = seq_len // 4 if k is None else k
        super().__init__(Linformer(self_k, dropout), dropout, **kwargs)
        self.k, self.seq_len = self_k, seq_len
        self.E, self.F = (torch.nn.Linear(seq_len, self_k, bias=False) for _ in range(2))

    def forward(self, q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As any part; of ``seq_len`` tokens at most."""
        if k.shape[-2] > self.seq_len:
            raise ShapeError(f"there are {k.shape[-2]} keys, but seq_len={self.seq_len}: write seq_len={k.shape[-2]}")
        return super().forward(q, k, *args, **kwargs)

    def params(self) -> dict[str, Any]:
        """The maps of keys and of values."""
        return {"k": {"weight": self.E.weight}, "v": {"weight": self.F.weight}}
