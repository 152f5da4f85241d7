"""Attention through a few of the queries."""

from enum import StrEnum
from typing import Any

from torch import Tensor

from ....parts.attention.ortho import Ortho
from .._registry import drawn, ignored
from . import register_attention
from ._folded import Part, present
from ._masks import Mask


class LandmarkSelection(StrEnum):
    """How landmarks are chosen."""

    Orthogonal = "orthogonal"
    KMeans = "kmeans"
    KMeans_Spherical = "kmeans_spherical"
    Random = "random"


@register_attention("orthoformer")
class OrthoFormerAttention(Part):
    """Attention through ``num_landmarks`` of the queries.

    Args:
        dropout: the probability of dropping from the result, in training.
        num_landmarks: how many.
        subsample_fraction: the share of queries among which they are chosen.
        landmark_selection: how they are chosen.
    """

    supports_attention_mask = True

    def __init__(
        self,
        dropout: float = 0.0,
        num_landmarks: int = 32,
        subsample_fraction: float = 1.0,
        landmark_selection: LandmarkSelection | str = LandmarkSelection.Orthogonal,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        selection: Any = LandmarkSelection(landmark_selection).value
        super().__init__(Ortho(num_landmarks, selection, subsample_fraction, p=dropout), dropout, **kwargs)
        self.num_landmarks, self.subsample_fraction = num_landmarks, subsample_fraction

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
        ignored("OrthoFormerAttention", present(att_mask=att_mask, mask=mask))
        return super().forward(q, k, v, None, key_padding_mask)

    def key(self, q: Tensor) -> Tensor | None:
        """Landmarks are drawn in training, whether it drops or not."""
        return drawn(self, 1.0, q.device)
