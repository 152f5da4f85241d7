"""Random features of the softmax kernel, as modules."""

import math
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...._core.dims import Dims
from ....parts.attention.favor import Favor
from ..._drawn import drawn
from .._registry import given


class FeatureMapType(StrEnum):
    """Which features."""

    SMOrf = "sm_orf"
    SMHyp = "sm_hyp"
    SMReg = "sm_reg"


class NormDistribution(Enum):
    """How long features are: as normal vectors, or 1."""

    Xi = auto()
    Uniform = auto()


@dataclass
class FeatureMapConfig:
    """What a feature map can be configured with."""

    name: str
    dim_features: int
    iter_before_redraw: int | None
    normalize_inputs: bool | None
    epsilon: float | None


class FeatureMap(torch.nn.Module):
    """exp(w·x̂ − ½|x̂|²) / √F of F random features w, with x̂ = x / K^¼.

    Args:
        dim_features: F; by default what K asks for.
        iter_before_redraw: after how many calls features are drawn anew; by default never.
        normalize_inputs: divide by the greatest ``exp |x̂|²`` of the sequence, which attention does not notice.
        epsilon: is added to the exponent.
        softmax_temp: what x is scaled by; by default K^−¼.
    """

    kind: ClassVar[Literal["sm_orf", "sm_hyp", "sm_reg"]] = "sm_orf"
    features: Tensor | None

    def __init__(
        self,
        dim_features: int | None,
        iter_before_redraw: int | None = None,
        normalize_inputs: bool = False,
        epsilon: float = 1e-6,
        softmax_temp: float = -1.0,
    ) -> None:
        super().__init__()
        assert self.kind == "sm_orf" or not (dim_features or 0) % 2, f"features come in pairs, not {dim_features}"
        self.part = Favor(dim_features, self.kind)
        self.dim_features, self.iter_before_redraw, self.calls = dim_features, iter_before_redraw, 0
        self.normalize_inputs, self.epsilon, self.softmax_temp = normalize_inputs, epsilon, softmax_temp
        self.register_buffer("features", None, persistent=False)

    @classmethod
    def from_config(cls, config: FeatureMapConfig) -> Any:
        """The map of a config, of which None is left out."""
        return cls(**given(config, cls))

    def redraw(self, dim_input: int, like: Tensor) -> None:
        """Features ``[K, F]``, or half as many where each stands for its opposite too."""
        made = self.part.init(drawn(), Dims(model=dim_input, heads=1))
        self.features = made["features"].to(like.device, like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., M, F]`` of ``x [..., M, K]``."""
        late = self.iter_before_redraw is not None and self.calls >= self.iter_before_redraw
        if late or self.features is None:
            self.redraw(x.shape[-1], x)
            self.calls = 0
        self.calls += 1
        features: Any = self.features
        plain = x.shape[-1] ** -0.25
        x = x if self.softmax_temp < 0 else x * (self.softmax_temp / plain)
        exponent = self.part.logarithms(x, features.to(x.device, x.dtype)) + self.epsilon
        if self.normalize_inputs:
            exponent = exponent - (x * plain).square().sum(-1, keepdim=True).amax(-2, keepdim=True)
        return exponent.exp()

    @staticmethod
    def _get_random_ortho_matrix(
        blocks: int, dim: int, device: Any = None, norm_distribution: NormDistribution = NormDistribution.Uniform
    ) -> Tensor:
        """Orthogonal matrices ``[blocks, dim, dim]``, whose rows have length 1 or that of normal vectors."""
        columns = Favor(dim, "sm_reg").draw(drawn(), dim, blocks * dim)
        rows: Tensor = columns.mT.unflatten(0, (blocks, dim)).to(device) / math.sqrt(dim)
        if norm_distribution == NormDistribution.Uniform:
            return rows
        return rows * torch.randn(blocks, dim, dim, device=device).square().sum(-1, keepdim=True).sqrt()


class SMOrf(FeatureMap):
    """Orthogonal features as long as normal vectors."""


class SMHyperbolic(FeatureMap):
    """Orthogonal features as long as normal vectors, each with its opposite."""

    kind = "sm_hyp"


class SMReg(FeatureMap):
    """Orthogonal features of length √K, each with its opposite."""

    kind = "sm_reg"


MAPS = {FeatureMapType.SMOrf: SMOrf, FeatureMapType.SMHyp: SMHyperbolic, FeatureMapType.SMReg: SMReg}
