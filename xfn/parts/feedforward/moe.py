"""Each token goes to a few of many feed-forward parts."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..._core.activations import check_activation
from ..._core.dims import Dims
from ..._core.fields import check_fields
from ..._core.kinds import check_number, check_probability, is_integer
from ...ops.moe import Route, init_moe, moe
from .._fields import check_multiplier, drawing, hidden


@dataclass(frozen=True)
class MixtureOfExperts:
    """Σ gₑ / Σ g · expertₑ(x) over the experts e that the gate likes best, as far as they have room.

    A sequence is routed on its own. First choices go before seconds, each in the order of the tokens, and who finds no
    room is dropped; when causal, all choices of a token go before those of the next.

    Attributes:
        experts: how many there are.
        top: how many of them a token goes to.
        gate: ``"top"``, by the largest of g = softmax(gate x); or ``"round_robin"``, token m to expert m mod experts.
        activation: the name of one of :mod:`xfn.activations`.
        p: probability of dropping in training, within an expert and from its result.
        room: how many tokens an expert takes, in shares of an even load.
        multiplier: F / E; by default F is what ``Dims.hidden`` says, or 4 E.
        bias: whether the experts have biases.

    Source: Lepikhin et al., "GShard" (2020); Fedus, Zoph and Shazeer, "Switch transformers" (2021).
    """

    experts: int = 4
    top: int = 2
    gate: Route = "top"
    activation: str = "gelu"
    p: float = 0.0
    room: float = 1.0
    multiplier: float | None = None
    bias: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_activation(self.activation)
        check_probability(self.p)
        check_multiplier(self.multiplier)
        if self.gate not in ("top", "round_robin"):
            raise ValueError(f"gate={self.gate!r} is neither 'top' nor 'round_robin'")
        for name in ("experts", "top"):
            if not is_integer(getattr(self, name)) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be an integer of at least 1")
        if self.top > self.experts:
            raise ValueError(f"top={self.top} is more than there are experts={self.experts}")
        if check_number("room", self.room) <= 0:
            raise ValueError(f"room={self.room} must be positive")

    def init(self, key: Tensor, dims: Dims) -> Any:
        return init_moe(key, dims.model, hidden(dims, self.multiplier), self.experts, self.gate, self.bias)

    def apply(
        self, params: Any, x: Tensor, causal: bool = False, *, key: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        p, _ = drawing(self.p, key)
        return moe(params, x, self.top, self.activation, p, route=self.gate, room=self.room, causal=causal, key=key)
