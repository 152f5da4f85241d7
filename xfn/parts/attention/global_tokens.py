"""A few tokens see all and are seen by all; nothing else is seen, not even oneself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._core.dims import Dims
from ..._core.fields import check_fields
from ..._core.kinds import check_probability, is_integer
from ...bias import Bias
from .._fields import Drops, settle
from .._patterns import attend


@dataclass(frozen=True)
class GlobalTokens(Drops):
    """softmax(scale · q kᵀ + bias) v where the query or the key is one of a few.

    Attributes:
        tokens: their positions; those behind the end of a sequence are not there.
        p: probability of dropping a weight in training.
        scale: factor of q kᵀ; by default K ** -0.5.

    Example:
        >>> GlobalTokens([0]).mask(3, 3, 1).int()
        tensor([[1, 1, 1],
                [1, 0, 0],
                [1, 0, 0]], dtype=torch.int32)

    Source: Beltagy, Peters and Cohan, "Longformer: the long-document transformer" (2020).
    """

    tokens: Sequence[int] = (0,)
    p: float = 0.0
    scale: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_probability(self.p)
        settle(self, "tokens")
        if wrong := [t for t in self.tokens if not is_integer(t) or t < 0]:
            raise ValueError(f"tokens={wrong} are no positions, which are integers from 0 on")

    def init(self, key: Tensor, dims: Dims) -> dict[str, Any]:
        return {}

    def mask(self, M: int, N: int, H: int) -> Tensor:
        marked = torch.zeros(max(M, N), dtype=torch.bool)
        marked[[t for t in self.tokens if t < len(marked)]] = True
        return marked[:M, None] | marked[:N]

    def apply(
        self, params: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, bias: Bias | Tensor | None = None, *,
        key: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return attend(self, q, k, v, bias, key)
