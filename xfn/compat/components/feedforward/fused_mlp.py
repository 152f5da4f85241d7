"""An MLP under the names of the checkpoints of one whose activation and dropout are one pass."""

from typing import Any

import torch
from torch import Tensor

from ....ops.mlp import mlp
from .._registry import Strict, drawn, ignored
from ..activations import named
from . import Feedforward, register_feedforward


class FusedDropoutBias(torch.nn.Module):
    """The bias behind a product."""

    def __init__(self, features: int, bias: bool) -> None:
        super().__init__()
        self.register_parameter("bias", torch.nn.Parameter(torch.zeros(features)) if bias else None)


@register_feedforward("FusedMLP")
class FusedMLP(Feedforward, Strict):
    """drop(down(drop(activation(up x)))); ``mlp.0`` is up and ``mlp.2`` down, whose biases are ``mlp.1`` and ``mlp.3``.

    A checkpoint without biases leaves them as they are.

    Args:
        dim_model, dropout, activation, hidden_layer_multiplier, bias: as of ``MLP``.
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
        ignored("FusedMLP", kwargs)
        hidden, linear = hidden_layer_multiplier * dim_model, torch.nn.Linear
        self.activation, self.dropout = named(activation), dropout
        self.mlp = torch.nn.Sequential(
            linear(dim_model, hidden, bias=False), FusedDropoutBias(hidden, bias),
            linear(hidden, dim_model, bias=False), FusedDropoutBias(dim_model, bias),
        )  # fmt: skip
        self.register_load_state_dict_pre_hook(_filled)  # type: ignore[no-untyped-call]

    def forward(self, inputs: Tensor) -> Tensor:
        """Of ``inputs [B, S, E]``."""
        own: Any = self.mlp
        params: Any = {name: {"weight": own[i].weight} for name, i in (("up", 0), ("down", 2))}
        for name, i in (("up", 1), ("down", 3)):
            if own[i].bias is not None:
                params[name]["bias"] = own[i].bias
        key = drawn(self, self.dropout, inputs.device)
        return mlp(params, inputs, self.activation, 0.0 if key is None else self.dropout, key=key)


def _filled(module: Any, state: dict[str, Any], prefix: str, *args: Any) -> None:
    """The biases that a checkpoint lacks."""
    for name, own in module.mlp.named_parameters():
        if name.endswith("bias"):
            state.setdefault(f"{prefix}mlp.{name}", own.detach())
