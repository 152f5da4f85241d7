"""Tokens are mixed by a Fourier transform, which has no parameters and looks at nothing."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._core.dims import Dims
from ..._core.fields import check_fields
from ..._core.kinds import check_probability, wide
from ...ops.dropout import dropout
from .._fields import Drops, drawing


@dataclass(frozen=True)
class FourierMix(Drops):
    """drop(Re F x), with F the discrete Fourier transform over positions and features, not normalised.

    Attributes:
        p: probability of dropping from the result in training.

    Source: Lee-Thorp, Ainslie, Eckstein and Ontañón, "FNet" (2021).
    """

    p: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_probability(self.p)

    def init(self, key: Tensor, dims: Dims) -> dict[str, Any]:
        return {}

    def apply(self, params: dict[str, Any], x: Tensor, *, key: Tensor | None = None) -> Tensor:
        p, key = drawing(self.p, key)
        if not x.numel():  # nothing to transform, which MKL refuses to
            return x.clone()
        return dropout(torch.fft.fft2(x.to(wide(x.dtype))).real.to(x.dtype), p, key=key)
