"""Attentions by name."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .._registry import Registry, ignored, looked_up, registering
from .._registry import built as _built
from ._masks import DENSITY_THRESHOLD as _DENSITY_THRESHOLD
from ._sputnik_sparse import SparseCS as SparseCS
from .attention_mask import AttentionMask as AttentionMask
from .base import Attention as Attention
from .base import AttentionConfig as AttentionConfig

ATTENTION_REGISTRY: Registry = {}
register_attention: Callable[..., Callable[[type], type]] = registering(ATTENTION_REGISTRY, Attention, AttentionConfig)


def build_attention(config: Mapping[str, Any] | AttentionConfig) -> Any:
    """The attention that a config names, which may say more than it takes: what is ignored is named in a warning.

    Args:
        config: ``{"name": …, "dropout": …, …}``.

    Raises:
        KeyError: no attention has that name.

    Example:
        >>> build_attention({"name": "scaled_dot_product", "dropout": 0.1, "causal": True}).causal
        True
    """
    if isinstance(config, AttentionConfig):
        return looked_up(ATTENTION_REGISTRY, "attention", config.name).constructor.from_config(config)
    name = config.get("name")
    made, left = _built(looked_up(ATTENTION_REGISTRY, "attention", name), config)
    ignored(str(name), left)
    return made


def maybe_sparsify(matrix: Tensor) -> AttentionMask | SparseCS:
    """A boolean mask, sparse where it keeps 30 % or less."""
    if torch.count_nonzero(matrix).item() / matrix.numel() > _DENSITY_THRESHOLD:
        return AttentionMask.from_bool(matrix) if matrix.dtype == torch.bool else AttentionMask(matrix)
    return sparsify(matrix)


def sparsify(matrix: Tensor) -> SparseCS:
    """A mask as its entries."""
    return SparseCS(matrix)


from .blocksparse import BlockSparseAttention as BlockSparseAttention  # noqa: E402
from .compositional import CompositionalAttention as CompositionalAttention  # noqa: E402
from .favor import FavorAttention as FavorAttention  # noqa: E402
from .fourier_mix import FourierMix as FourierMix  # noqa: E402
from .global_tokens import GlobalAttention as GlobalAttention  # noqa: E402
from .lambda_layer import LambdaLayer as LambdaLayer  # noqa: E402
from .linformer import LinformerAttention as LinformerAttention  # noqa: E402
from .local import LocalAttention as LocalAttention  # noqa: E402
from .nystrom import NystromAttention as NystromAttention  # noqa: E402
from .ortho import OrthoFormerAttention as OrthoFormerAttention  # noqa: E402
from .pooling import Pooling as Pooling  # noqa: E402
from .random import RandomAttention as RandomAttention  # noqa: E402
from .scaled_dot_product import ScaledDotProduct as ScaledDotProduct  # noqa: E402
from .visual import Visual as Visual  # noqa: E402
