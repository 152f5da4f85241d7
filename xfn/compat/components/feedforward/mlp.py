"""Two linear maps with an activation between."""

from typing import Any

import torch
from torch import Tensor

from ....ops.mlp import mlp
from .._registry import Strict, drawn, ignored
from ..activations import build_activation, named
from ..attention.compositional import weights
from . import Feedforward, register_feedforward


@register_feedforward("MLP")
class MLP(Feedforward, Strict):
    """drop(down(drop(activation(up x)))); ``mlp.0`` is up, and ``mlp.3`` down.

    Args:
        dim_model: E.
        dropout: the probability of dropping, both times, in training.
        activation: its name, or None.
        hidden_layer_multiplier: F / E.
        bias: whether the maps have biases.
    """

    def __init__(
        self,
        dim_model: int,
        dropout: float = 0.0,
        activation: Any = None,
        hidden_layer_multiplier: int = 4,
        bias: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        ignored(type(self).__name__, kwargs)
        self.activation, self.dropout = named(activation), dropout
        hidden = hidden_layer_multiplier * dim_model
        linear, drop = torch.nn.Linear, torch.nn.Dropout
        self.mlp = torch.nn.Sequential(
            linear(dim_model, hidden, bias), build_activation(activation), drop(dropout),
            linear(hidden, dim_model, bias), drop(dropout),
        )  # fmt: skip

    def forward(self, inputs: Tensor) -> Tensor:
        """Of ``inputs [B, S, E]``."""
        up, down = (weights(m) for m in self.mlp if isinstance(m, torch.nn.Linear))
        key = drawn(self, self.dropout, inputs.device)
        params: Any = {"up": up, "down": down}
        return mlp(params, inputs, self.activation, 0.0 if key is None else self.dropout, key=key)
