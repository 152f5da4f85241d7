"""Two linear maps with an activation between them."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..._core.activations import check_activation
from ..._core.dims import Dims
from ..._core.fields import check_fields
from ..._core.kinds import check_probability
from ...ops.mlp import init_mlp, mlp
from .._fields import Drops, check_multiplier, drawing, hidden


@dataclass(frozen=True)
class MLP(Drops):
    """drop(down(drop(activation(up x)))).

    Attributes:
        activation: the name of one of :mod:`xfn.activations`.
        p: probability of dropping in training, both times.
        multiplier: F / E; by default F is what ``Dims.hidden`` says, or 4 E.
        bias: whether the maps have biases.

    Source: Vaswani et al., "Attention is all you need" (2017).
    """

    activation: str = "gelu"
    p: float = 0.0
    multiplier: float | None = None
    bias: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_activation(self.activation)
        check_probability(self.p)
        check_multiplier(self.multiplier)

    def init(self, key: Tensor, dims: Dims) -> Any:
        return init_mlp(key, dims.model, hidden(dims, self.multiplier), self.bias)

    def apply(self, params: Any, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        p, key = drawing(self.p, key)
        return mlp(params, x, self.activation, p, key=key)
