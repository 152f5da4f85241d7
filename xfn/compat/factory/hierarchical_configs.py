"""Pyramids of blocks, each of which sees the one before through patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .config import ResidualNormStyle


@dataclass
class BasicLayerConfig:
    """One level of a pyramid: what differs from level to level."""

    embedding: int
    attention_mechanism: str
    patch_size: int
    stride: int
    padding: int
    seq_len: int
    feedforward: str
    normalization: str = "layernorm"
    repeat_layer: int = 1


def get_hierarchical_configuration(
    layer_base_configs: Sequence[BasicLayerConfig],
    residual_norm_style: Any = ResidualNormStyle.Pre,
    use_rotary_embeddings: bool = True,
    mlp_multiplier: int = 4,
    in_channels: int = 3,
    dim_head: int | None = None,
) -> list[dict[str, Any]]:
    """The configs of a pyramid's blocks, for :class:`xFormerConfig`.

    Args:
        layer_base_configs: from the finest level to the coarsest.
        residual_norm_style: of every layer.
        use_rotary_embeddings: whether q and k are turned.
        mlp_multiplier: of the feed-forwards' width.
        in_channels: of the image.
        dim_head: the width of a head; by default each level has one.

    Returns:
        A list of dicts, one a level.

    Example:
        >>> level = BasicLayerConfig(8, "scaled_dot_product", 3, 2, 1, 16, "MLP")
        >>> get_hierarchical_configuration([level])[0]["patch_embedding_config"]["in_channels"]
        3
    """
    found = []
    for level in layer_base_configs:
        assert dim_head is None or level.embedding % dim_head == 0, (
            f"embedding={level.embedding} is no multiple of dim_head={dim_head}"
        )
        attention: dict[str, Any] = {"name": level.attention_mechanism, "causal": False, "seq_len": level.seq_len}
        found.append({
            "block_type": "encoder",
            "dim_model": level.embedding,
            "num_layers": level.repeat_layer,
            "normalization": level.normalization,
            "residual_norm_style": ResidualNormStyle(residual_norm_style).value,
            "use_triton": False,
            "patch_embedding_config": {
                "in_channels": in_channels,
                "out_channels": level.embedding,
                "kernel_size": level.patch_size,
                "stride": level.stride,
                "padding": level.padding,
            },
            "position_encoding_config": {"name": "learnable", "seq_len": level.seq_len, "add_class_token": False},
            "multi_head_config": {
                "num_heads": level.embedding // dim_head if dim_head else 1,
                "use_rotary_embeddings": use_rotary_embeddings,
                "attention": attention,
            },
            "feedforward_config": {
                "name": level.feedforward,
                "activation": "gelu",
                "hidden_layer_multiplier": mlp_multiplier,
                "dropout": 0.0,
            },
        })  # fmt: skip
        in_channels = level.embedding
    return found
