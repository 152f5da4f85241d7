"""Attention by random features."""

from typing import Any

import torch
from torch import Tensor

from ....parts.attention.favor import Favor
from . import register_attention
from ._folded import Part
from .feature_maps import MAPS, FeatureMapType


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
        normalize_inputs: of no consequence: what it takes from the logarithms of features, it takes from all.
    """

    supports_key_padding_mask = True

    def __init__(
        self,
        causal: bool = False,
        dropout: float = 0.0,
        dim_features: int | None = None,
        dim_head: int | None = None,
        iter_before_redraw: int | None = None,
        feature_map_type: FeatureMapType | str = FeatureMapType.SMReg,
        feature_map: FeatureMapType | str | None = None,
        normalize_inputs: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        name = FeatureMapType(feature_map or feature_map_type)
        super().__init__(Favor(dim_features, name.value, p=dropout), dropout, **kwargs)
        self.causal, self.iter_before_redraw, self.calls = causal, iter_before_redraw, 0
        self.feature_map = MAPS[name](dim_features, None, normalize_inputs)
        if dim_head is not None:
            self.feature_map.redraw(int(dim_head), torch.zeros(()))

    def forward(self, q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As of every attention; features are drawn when it is time."""
        late = self.training and self.iter_before_redraw is not None and self.calls >= self.iter_before_redraw
        if late or self.feature_map.features is None:
            self.feature_map.redraw(q.shape[-1], q)
            self.calls = 0
        self.calls += self.training
        return super().forward(q, *args, **kwargs)

    def params(self) -> dict[str, Any]:
        """The features."""
        return {"features": self.feature_map.features}
