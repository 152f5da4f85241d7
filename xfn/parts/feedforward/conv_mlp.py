"""Two linear maps with a look at the eight neighbours between them, over an image."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..._core.activations import check_activation
from ..._core.dims import Dims
from ..._core.fields import check_fields
from ..._core.kinds import check_probability
from ...ops.conv_mlp import conv_mlp, init_conv_mlp
from .._fields import Drops, check_multiplier, drawing, hidden


@dataclass(frozen=True)
class ConvMLP(Drops):
    """drop(down(activation(mix(up x)))), with mix each feature's own 3 × 3 convolution.

    Attributes:
        activation: the name of one of :mod:`xfn.activations`.
        p: probability of dropping from the result in training.
        multiplier: F / E; by default F is what ``Dims.hidden`` says, or E.
        bias: whether the maps have biases.

    Source: Li, Xie et al., "LocalViT" (2021); Wang et al., "PVT v2" (2021).
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
        return init_conv_mlp(key, dims.model, hidden(dims, self.multiplier), bias=self.bias)

    def apply(
        self, params: Any, x: Tensor, *, grid: tuple[int, int] | None = None, key: Tensor | None = None
    ) -> Tensor:
        p, key = drawing(self.p, key)
        return conv_mlp(params, x, self.activation, p, grid=grid, key=key)
