"""Each token goes to two of many MLPs, or to one in turn."""

from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from ....ops.moe import moe
from .._registry import Strict, drawn, ignored
from ..attention.compositional import weights
from . import Feedforward, register_feedforward
from .mlp import MLP


class GateConfig(StrEnum):
    """How experts are chosen."""

    RoundRobin = "round_robin"
    Top2 = "top_2"


class Top2Gate(torch.nn.Module):
    """The gate's map, under the name of its checkpoints."""

    def __init__(self, model_dim: int, num_experts: int) -> None:
        super().__init__()
        self.wg = torch.nn.Linear(model_dim, num_experts, bias=False)


class MOELayer(torch.nn.Module):
    """A gate and experts, under the names of their checkpoints."""

    def __init__(self, gate: torch.nn.Module, experts: torch.nn.ModuleList) -> None:
        super().__init__()
        self.gate, self.experts = gate, experts


@register_feedforward("MixtureOfExperts")
class MixtureOfExperts(Feedforward, Strict):
    """Each token through two of the experts, or one in turn; a sequence is routed on its own, in one process.

    Args:
        dim_model: E.
        dropout: the probability of dropping, in training.
        activation: the name of the experts' activation.
        number_of_experts: how many.
        gate: ``"top_2"`` or ``"round_robin"``.
        hidden_layer_multiplier: F / E of an expert; by default 4.
    """

    def __init__(
        self,
        dim_model: int,
        dropout: float = 0.0,
        activation: Any = None,
        number_of_experts: int = 4,
        gate: GateConfig | str = GateConfig.Top2,
        hidden_layer_multiplier: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        ignored("MixtureOfExperts", kwargs)
        self.top = 2 if GateConfig(gate) == GateConfig.Top2 else 1
        self.gate = Top2Gate(dim_model, number_of_experts) if self.top == 2 else torch.nn.Module()
        experts = [MLP(dim_model, dropout, activation, hidden_layer_multiplier or 4) for _ in range(number_of_experts)]
        self.moe = MOELayer(self.gate, torch.nn.ModuleList(experts))
        self.dropout, self.activation = dropout, experts[0].activation

    def forward(self, inputs: Tensor) -> Tensor:
        """Of ``inputs [B, S, E]``."""
        experts: Any = self.moe.experts
        each = {name: [weights(expert.mlp[i]) for expert in experts] for name, i in (("up", 0), ("down", 3))}
        stacked = {name: {n: torch.stack([w[n] for w in layers]) for n in layers[0]} for name, layers in each.items()}
        params: Any = {"experts": stacked}
        if self.top == 2:
            own: Any = self.gate
            params["gate"] = {"weight": own.wg.weight}
        key = drawn(self, 1.0, inputs.device)
        p = 0.0 if key is None else self.dropout
        route: Any = "top" if self.top == 2 else "round_robin"
        return moe(params, inputs, self.top, self.activation, p, route=route, key=key)[0]
