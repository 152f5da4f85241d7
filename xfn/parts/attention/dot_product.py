"""Every query attends to every key that the bias lets it see."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..._core.dims import Dims
from ..._core.fields import check_fields
from ..._core.kinds import check_probability
from ...bias import Bias
from ...ops.attention import attention
from .._fields import Drops, drawing


@dataclass(frozen=True)
class DotProduct(Drops):
    """softmax(scale · q kᵀ + bias) v.

    Attributes:
        p: probability of dropping a weight in training.
        scale: factor of q kᵀ; by default K ** -0.5.

    Source: Vaswani et al., "Attention is all you need" (2017).
    """

    p: float = 0.0
    scale: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_probability(self.p)

    def init(self, key: Tensor, dims: Dims) -> dict[str, Any]:
        return {}

    def apply(
        self, params: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, bias: Bias | Tensor | None = None, *,
        key: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        p, key = drawing(self.p, key)
        return attention(q, k, v, bias, p, self.scale, key=key)
