"""Features in chunks, each of them a point of a simplex."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ...ops.simplicial import simplicial


@dataclass
class SimplicialEmbeddingConfig:
    """How many chunks, and how near to their corners."""

    L: int
    temperature: float


class SimplicialEmbedding(torch.nn.Module):
    """softmax(x / temperature) over each of L chunks of the features.

    Example:
        >>> SimplicialEmbedding(2)(torch.zeros(1, 4))
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """

    def __init__(self, L: int, temperature: float | None = None) -> None:
        super().__init__()
        self.L, self.temperature = L, temperature

    def forward(self, x: Tensor) -> Tensor:
        """Of ``x [..., E]``, E a multiple of L."""
        assert x.shape[-1] % self.L == 0, f"{x.shape[-1]} features do not divide into L={self.L} chunks"
        return simplicial(x, self.L, 1.0 if self.temperature is None else self.temperature)

    @classmethod
    def from_config(cls, config: SimplicialEmbeddingConfig) -> "SimplicialEmbedding":
        """That of a config."""
        return cls(**{name: value for name, value in asdict(config).items() if value is not None})
