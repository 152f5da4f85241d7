"""What feed-forwards of xformers.components have in common."""

from dataclasses import dataclass
from typing import Any

import torch

from .._registry import given


@dataclass
class FeedforwardConfig:
    """What every feed-forward can be configured with."""

    name: str
    dim_model: int
    dropout: float
    activation: Any


class Feedforward(torch.nn.Module):
    """A feed-forward of ``[B, S, E]``."""

    requires_cuda = False
    requires_squared_context = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    @classmethod
    def from_config(cls, config: Any) -> Any:
        """The feed-forward of a config, whose fields are arguments; those that are None are left out."""
        return cls(**given(config, cls))
