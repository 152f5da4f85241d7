"""Two linear maps with a look at the eight neighbours between them, over a square."""

from math import isqrt
from typing import Any

import torch
from torch import Tensor

from ....ops.conv_mlp import conv_mlp
from .._registry import Strict, drawn, ignored
from ..activations import build_activation, named
from ..attention.visual import mapping
from . import Feedforward, register_feedforward


@register_feedforward("Conv2DFeedforward")
class Conv2DFeedforward(Feedforward, Strict):
    """drop(down(activation(mix(up x)))), over a square.

    Args:
        dim_model: E.
        hidden_layer_multiplier: F / E.
        dim_model_out: the width of the result; by default E.
        activation: its name.
        dropout: the probability of dropping from the result, in training.
    """

    requires_squared_context = True

    def __init__(
        self,
        dim_model: int,
        hidden_layer_multiplier: int = 1,
        dim_model_out: int | None = None,
        activation: Any = "gelu",
        dropout: float = 0.0,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        ignored("Conv2DFeedforward", kwargs)
        hidden, conv = hidden_layer_multiplier * dim_model, torch.nn.Conv2d
        self.activation, self.dropout = named(activation), dropout
        self.conv_mlp = torch.nn.Sequential(
            conv(dim_model, hidden, 1),
            conv(hidden, hidden, 3, 1, 1, groups=hidden),
            build_activation(activation),
            conv(hidden, dim_model_out or dim_model, 1),
            torch.nn.Dropout(dropout),
        )
        self.init_weights()

    def init_weights(self, **kwargs: Any) -> None:
        """Weights normal with variance 2 / fan out, biases 0."""
        for m in self.conv_mlp:
            if isinstance(m, torch.nn.Conv2d) and m.bias is not None:
                fan = m.kernel_size[0] * m.kernel_size[1] * m.out_channels // m.groups
                torch.nn.init.normal_(m.weight, 0, (2 / fan) ** 0.5)
                torch.nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Of ``x [B, S, E]``; the kernel's first dim runs along a row, as in the checkpoints."""
        assert isqrt(x.shape[-2]) ** 2 == x.shape[-2], f"{x.shape[-2]} tokens do not lie on a square"
        own: Any = self.conv_mlp
        mix = {"weight": own[1].weight.squeeze(1).mT, "bias": own[1].bias}
        params: Any = {"up": mapping(own[0]), "mix": mix, "down": mapping(own[3])}
        key = drawn(self, self.dropout, x.device)
        return conv_mlp(params, x, self.activation, 0.0 if key is None else self.dropout, key=key)
