"""What positional embeddings of xformers.components have in common."""

from dataclasses import dataclass
from typing import Any

import torch

from .._registry import given


@dataclass
class PositionEmbeddingConfig:
    """What every positional embedding can be configured with."""

    name: str
    dim_model: int
    seq_len: int


class PositionEmbedding(torch.nn.Module):
    """Tells a model what stands where."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    @classmethod
    def from_config(cls, config: Any) -> Any:
        """The embedding of a config, whose fields are arguments; those that are None are left out."""
        return cls(**given(config, cls))
