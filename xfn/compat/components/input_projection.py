"""The projections of queries, keys and values."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._core.errors import ShapeError


@dataclass
class InputProjectionConfig:
    """A linear map."""

    in_features: int
    out_features: int
    bias: bool


InProjParams = InputProjectionConfig


class InputProjection(torch.nn.Module):
    """``q_proj``, ``k_proj`` and ``v_proj``; those without a config are ``q_proj`` itself.

    Args:
        query_proj_params, key_proj_params, value_proj_params: of each, its sizes.
        use_separate_proj_weight: whether each has weights of its own; biases are their own in any case.
    """

    def __init__(
        self,
        query_proj_params: InputProjectionConfig,
        key_proj_params: InputProjectionConfig | None = None,
        value_proj_params: InputProjectionConfig | None = None,
        use_separate_proj_weight: bool = True,
    ) -> None:
        super().__init__()
        self.q_proj = _map(query_proj_params)
        self.k_proj = self.q_proj if key_proj_params is None else _map(key_proj_params)
        self.v_proj = self.q_proj if value_proj_params is None else _map(value_proj_params)
        self.out_features = query_proj_params.out_features
        if not use_separate_proj_weight:
            self.k_proj.weight = self.v_proj.weight = self.q_proj.weight

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each of them projected."""
        maps = {"query": self.q_proj, "key": self.k_proj, "value": self.v_proj}
        for (name, projection), x in zip(maps.items(), (query, key, value), strict=True):
            if x.shape[-1] != projection.in_features:
                raise ShapeError(f"{name} has {x.shape[-1]} features, but its map takes {projection.in_features}")
        return self.q_proj(query), self.k_proj(key), self.v_proj(value)


def _map(config: Any) -> torch.nn.Linear:
    return torch.nn.Linear(config.in_features, config.out_features, config.bias)
