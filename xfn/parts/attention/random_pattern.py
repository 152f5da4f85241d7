"""Every query attends to keys that chance chose for it, once and for all."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import random
from ..._core import philox
from ..._core.dims import Dims
from ..._core.fields import check_fields
from ..._core.kinds import check_number, check_probability
from ...bias import Bias
from .._fields import Drops
from .._patterns import attend


@dataclass(frozen=True)
class RandomPattern(Drops):
    """softmax(scale · q kᵀ + bias) v over a pattern that keeps each coefficient by chance.

    Whether query m sees key n follows from the seed, m and n alone: all heads and examples share it, and a longer
    sequence begins with what a shorter one has. A query that sees nothing gives zeros.

    Attributes:
        density: the probability of being kept, rounded to a multiple of 2⁻¹⁶.
        seed: of the pattern.
        p: probability of dropping a weight in training.
        scale: factor of q kᵀ; by default K ** -0.5.

    Example:
        >>> RandomPattern(density=0.5).mask(3, 4, 1).shape
        torch.Size([3, 4])

    Source: Zaheer et al., "Big Bird: transformers for longer sequences" (2020), its random part.
    """

    density: float = 0.01
    seed: int = 0
    p: float = 0.0
    scale: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_probability(self.p)
        if not 0 < check_number("density", self.density) <= 1:
            raise ValueError(f"density={self.density} must lie in (0, 1]")

    def init(self, key: Tensor, dims: Dims) -> dict[str, Any]:
        return {}

    def mask(self, M: int, N: int, H: int) -> Tensor:
        head, rows = torch.arange(1), torch.arange(M)
        return philox.keep(random.key(self.seed), 1 - self.density, head, rows, 0, N)[0]

    def apply(
        self, params: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, bias: Bias | Tensor | None = None, *,
        key: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return attend(self, q, k, v, bias, key)
