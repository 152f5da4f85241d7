"""Patterns under their old names: booleans, True where attention is allowed."""

from typing import Any

import torch
from torch import Tensor

from .... import patterns
from ....patterns import local_nd_distance as local_nd_distance
from ..._drawn import drawn as _drawn
from .sparsity_config import (
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    FixedSparsityConfig,
    VariableSparsityConfig,
)


def local_nd_gaussian_distribution(*sizes: int, sigma: float = 1) -> Tensor:
    """``exp(−½ |i − j|² / σ²)`` of places on a grid."""
    return patterns.local_nd_gaussian(*sizes, sigma=sigma)


def local_nd_pattern(*sizes: int, distance: float, p: float = 2.0) -> Tensor:
    """Places less than a distance apart."""
    return patterns.local_nd(*sizes, distance=distance, p=p)


def axial_nd_pattern(*sizes: int) -> Tensor:
    """Places of which at most one coordinate differs."""
    return patterns.axial_nd(*sizes)


def random_pattern_from_probability_matrix(dist_matrix: Tensor, nnz: int) -> Tensor:
    """``nnz`` entries, drawn with these weights from torch's generator."""
    return patterns.random_from_probability(dist_matrix.float(), nnz, _drawn())


def global_token_pattern(attention_query_mask: Tensor) -> Tensor:
    """Marked tokens see all and are seen by all."""
    assert attention_query_mask.dim() == 1, "which tokens see all is [S]"
    assert attention_query_mask.dtype == torch.bool, "which tokens see all is boolean"
    return patterns.global_token(attention_query_mask)


def random_pattern(attn_size: int, sparsity: float) -> Tensor:
    """Each entry is kept with probability 1 − sparsity, drawn from torch's generator."""
    assert 0 < sparsity < 1, f"sparsity={sparsity} must lie between 0 and 1"
    return patterns.random(attn_size, 1 - sparsity, _drawn())


def local_1d_pattern(attn_size: int, window_size: int) -> Tensor:
    """A window around each token, oneself in its middle."""
    assert window_size % 2 == 1, f"window_size={window_size} has no middle"
    return patterns.local_1d(attn_size, window_size)


def causal_1d_pattern(attn_size: int) -> Tensor:
    """No token sees a later one."""
    return patterns.causal_1d(attn_size)


def horizontal_axial_2d_distance(H: int, W: int, p: float = 2.0) -> Tensor:
    """How many rows apart."""
    return patterns.horizontal_axial_2d_distance(H, W, p=p)


def vertical_axial_2d_distance(H: int, W: int, p: float = 2.0) -> Tensor:
    """How many columns apart."""
    return patterns.vertical_axial_2d_distance(H, W, p=p)


def local_2d_distance(H: int, W: int, p: float = 2.0) -> Tensor:
    """How far apart."""
    return patterns.local_2d_distance(H, W, p=p)


def local_2d_gausian_distribution(H: int, W: int, sigma: float = 1) -> Tensor:
    """``exp(−½ |i − j|² / σ²)`` of places in an image."""
    return patterns.local_2d_gaussian(H, W, sigma=sigma)


def local_2d_pattern(H: int, W: int, distance: float, p: float = 2.0) -> Tensor:
    """Places in an image less than a distance apart."""
    return patterns.local_2d(H, W, distance=distance, p=p)


def axial_2d_pattern(H: int, W: int) -> Tensor:
    """The same row or the same column."""
    return patterns.axial_2d(H, W)


def swin_attention_pattern(H: int, W: int, window_size: int, shift_size: int = 0) -> Tensor:
    """The same window of an image, shifted."""
    assert H % window_size == 0 == W % window_size, f"window_size={window_size} must divide {H} and {W}"
    assert 0 <= shift_size < window_size, f"shift_size={shift_size} must lie below window_size={window_size}"
    return patterns.swin(H, W, window_size, shift_size)


def dilated_2d_pattern(H: int, W: int, k: int = 2) -> Tensor:
    """Rows and columns that are multiples of k apart."""
    return patterns.dilated_2d(H, W, k)


def block_sparsify_tensor(x: Tensor, mask: Tensor, block_size: int) -> Tensor:
    """The blocks of ``x [B, H, S, S]`` that a layout ``[H, S/b, S/b]`` has: ``[B, nnz, b, b]``."""
    return patterns.gather(x, mask != 0, block_size)


def pattern_to_layout(mask: Tensor, block_size: int) -> Tensor:
    """The blocks that hold any entry: int64 ``[S/b, S/b]``, or of each head."""
    assert mask.dim() in (2, 3), f"a pattern is [S, S] or [H, S, S], but got {list(mask.shape)}"
    assert not any(n % block_size for n in mask.shape[-2:]), f"block_size={block_size} must divide {mask.shape[-2:]}"
    return patterns.pool(mask != 0, block_size).long()


def layout_to_pattern(layout: Tensor, block_size: int) -> Tensor:
    """Every entry as its block."""
    return layout.repeat_interleave(block_size, -2).repeat_interleave(block_size, -1)


def alibi_pattern(threshold: float, mask_shape: Any) -> Tensor:
    """Of each head ``[H, S, S]``, the keys whose ALiBi penalty is below a threshold.

    Args:
        threshold: of ``slope · |i − j|``.
        mask_shape: ``(H, S, …)``.
    """
    return patterns.alibi(mask_shape[1], mask_shape[0], threshold)


def quick_fixed_layout(num_heads: int, block_size: int, seq_len: int) -> Tensor:
    """The layout of a ``FixedSparsityConfig``."""
    return FixedSparsityConfig(num_heads=num_heads, block_size=block_size).make_layout(seq_len)


def quick_variable_layout(num_heads: int, block_size: int, seq_len: int) -> Tensor:
    """The layout of a ``VariableSparsityConfig``."""
    return VariableSparsityConfig(num_heads=num_heads, block_size=block_size).make_layout(seq_len)


def quick_bigbird_layout(num_heads: int, block_size: int, seq_len: int) -> Tensor:
    """The layout of a ``BigBirdSparsityConfig``."""
    return BigBirdSparsityConfig(num_heads=num_heads, block_size=block_size).make_layout(seq_len)


def quick_bslongformer_layout(num_heads: int, block_size: int, seq_len: int) -> Tensor:
    """The layout of a ``BSLongformerSparsityConfig``."""
    return BSLongformerSparsityConfig(num_heads=num_heads, block_size=block_size).make_layout(seq_len)
