"""Attention by random features."""

from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from ...._core.dims import Dims
from ....parts.attention.favor import Favor
from . import register_attention
from ._folded import Part


class FeatureMapType(StrEnum):
    """Which features."""

    SMOrf = "sm_orf"
    SMHyp = "sm_hyp"
    SMReg = "sm_reg"


@register_attention("favor")
class FavorAttention(Part):
    """Softmax attention, estimated by orthogonal random features.

    Args:
        causal: whether a query sees no later key.
        dropout: the probability of dropping from the result, in training.
        dim_features: how many features; by default about K (1 + log₂ K).
        dim_head: K; by default what the first call has.
        iter_before_redraw: after how many calls in training features are drawn anew; by default never.
        feature_map_type, feature_map: which features.
    """

    supports_key_padding_mask = True
    features: Tensor | None

    def __init__(
        self,
        causal: bool = False,
        dropout: float = 0.0,
        dim_features: int | None = None,
        dim_head: int | None = None,
        iter_before_redraw: int | None = None,
        feature_map_type: FeatureMapType | str = FeatureMapType.SMReg,
        feature_map: FeatureMapType | str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        name: Any = FeatureMapType(feature_map or feature_map_type).value
        super().__init__(Favor(dim_features, name, p=dropout), dropout, **kwargs)
        self.causal, self.iter_before_redraw, self.calls = causal, iter_before_redraw, 0
        self.register_buffer("features", None, persistent=False)
        if dim_head is not None:
            self._redraw(dim_head, torch.zeros(()))

    def _redraw(self, dim_head: int, like: Tensor) -> None:
        made = self.part.init(torch.randint(1 << 32, (2,)), Dims(model=dim_head, heads=1))
        self.features = made["features"].to(like.device, like.dtype)

    def forward(self, q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As of every attention; features are drawn when it is time."""
        self.calls += self.training
        late = self.iter_before_redraw is not None and self.calls > self.iter_before_redraw
        if late or self.features is None:
            self._redraw(q.shape[-1], q)
            self.calls = 0
        return super().forward(q, *args, **kwargs)

    def params(self) -> dict[str, Any]:
        """The features."""
        return {"features": self.features}
