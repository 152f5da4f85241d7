"""Two linear maps, the first of them gated."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..._core.dims import Dims
from ..._core.fields import check_fields
from ..._core.kinds import check_probability
from ...ops.swiglu import init_swiglu, swiglu
from .._fields import Drops, check_multiplier, drawing, hidden


@dataclass(frozen=True)
class Swiglu(Drops):
    """drop(down(drop(silu(gate x) ∘ up x))).

    Attributes:
        p: probability of dropping in training, both times.
        multiplier: F / E; by default F is what ``Dims.hidden`` says, or 8 E / 3, up to a multiple of 8.
        bias: whether the maps have biases.

    Source: Shazeer, "GLU variants improve transformer" (2020).
    """

    p: float = 0.0
    multiplier: float | None = None
    bias: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_probability(self.p)
        check_multiplier(self.multiplier)

    def init(self, key: Tensor, dims: Dims) -> Any:
        return init_swiglu(key, dims.model, hidden(dims, self.multiplier), self.bias)

    def apply(self, params: Any, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        p, key = drawing(self.p, key)
        return swiglu(params, x, p, key=key)
