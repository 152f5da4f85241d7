"""Patches of an image, or of tokens that lie on a square, as tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from ...ops.patch import patch


class PoolType(StrEnum):
    """How a patch becomes a token."""

    Conv2D = "CONV_2D"


@dataclass
class PatchEmbeddingConfig:
    """Channels, and where patches lie."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    padding: int = 0
    pool_type: PoolType = PoolType.Conv2D


class PatchEmbedding(torch.nn.Sequential):
    """``[B, C, h, w]``, or a square of tokens ``[B, h · h, C]``, to ``[B, M, E]``; its convolution is number 1."""

    def __init__(self, config: PatchEmbeddingConfig) -> None:
        kernel, stride, padding = config.kernel_size, config.stride, config.padding
        conv = torch.nn.Conv2d(config.in_channels, config.out_channels, kernel, stride, padding)
        super().__init__(torch.nn.Identity(), conv, torch.nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """A token for each patch, row by row."""
        conv: Any = self[1]
        side = round(x.shape[-2] ** 0.5)
        assert x.dim() == 4 or side * side == x.shape[-2], f"{x.shape[-2]} tokens do not lie on a square"
        params: Any = {"weight": conv.weight, "bias": conv.bias}
        return patch(params, x, conv.stride, conv.padding, side if x.dim() == 3 else None)


def build_patch_embedding(config: PatchEmbeddingConfig | Mapping[str, Any]) -> PatchEmbedding:
    """The patch embedding of a config.

    Raises:
        NotImplementedError: another pooling than a convolution.

    Example:
        >>> embed = build_patch_embedding({"in_channels": 3, "out_channels": 8, "kernel_size": 4, "stride": 4})
        >>> embed(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 4, 8])
    """
    config = config if isinstance(config, PatchEmbeddingConfig) else PatchEmbeddingConfig(**config)
    if config.pool_type != PoolType.Conv2D:
        raise NotImplementedError(f"pool_type={config.pool_type!r} is not {PoolType.Conv2D.value!r}")
    return PatchEmbedding(config)
