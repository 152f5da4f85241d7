"""``xformers.components`` under its old names."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ._registry import arguments, ignored, looked_up
from ._registry import built as _built
from ._registry import generate_matching_config as _matching
from .activations import Activation as Activation
from .activations import build_activation as build_activation
from .attention import ATTENTION_REGISTRY as _ATTENTIONS
from .attention import Attention as Attention
from .attention import build_attention as build_attention
from .attention import register_attention as register_attention
from .feedforward import build_feedforward as build_feedforward
from .feedforward import register_feedforward as register_feedforward
from .input_projection import InProjParams as InProjParams
from .input_projection import InputProjection as InputProjection
from .input_projection import InputProjectionConfig as InputProjectionConfig
from .multi_head_dispatch import MultiHeadDispatch as MultiHeadDispatch
from .multi_head_dispatch import MultiHeadDispatchConfig as MultiHeadDispatchConfig
from .patch_embedding import PatchEmbeddingConfig as PatchEmbeddingConfig
from .patch_embedding import build_patch_embedding as build_patch_embedding
from .positional_embedding import build_positional_embedding as build_positional_embedding
from .positional_embedding import register_positional_embedding as register_positional_embedding
from .residual import LayerNormStyle as LayerNormStyle
from .residual import NormalizationType as NormalizationType
from .residual import PostNorm as PostNorm
from .residual import PreNorm as PreNorm
from .residual import RequiresWrappedInputs as RequiresWrappedInputs
from .residual import Residual as Residual
from .residual import ResidualNormStyle as ResidualNormStyle
from .reversible import ReversibleBlock as ReversibleBlock
from .reversible import ReversibleSequence as ReversibleSequence
from .simplicial_embedding import SimplicialEmbedding as SimplicialEmbedding
from .simplicial_embedding import SimplicialEmbeddingConfig as SimplicialEmbeddingConfig


def build_multi_head_attention(multi_head_config: Mapping[str, Any] | MultiHeadDispatchConfig) -> MultiHeadDispatch:
    """Heads and their attention from a config, which may say more than they take: one warning names what is ignored.

    Args:
        multi_head_config: ``{"num_heads": …, "dim_model": …, "attention": {"name": …, …}, …}``; the attention may be
            one already. It is left as it is.

    Raises:
        KeyError: no attention has that name.

    Example:
        >>> config = {"num_heads": 2, "dim_model": 8, "attention": {"name": "scaled_dot_product"}}
        >>> build_multi_head_attention(config).num_heads
        2
    """
    if isinstance(multi_head_config, MultiHeadDispatchConfig):
        says = {f.name: getattr(multi_head_config, f.name) for f in fields(multi_head_config)}
    else:
        says = dict(multi_head_config)
    left: list[str] = []
    if isinstance(inner := says["attention"], Mapping):
        item = looked_up(_ATTENTIONS, "attention", inner.get("name"))
        E, H = says["dim_model"], says["num_heads"]
        known = {"num_heads": H, "dim_model": E, "dim_head": E // H}
        named = arguments(item.constructor)
        filled = {n: v for n, v in known.items() if n in named and inner.get(n) is None}
        says["attention"], left = _built(item, {**inner, **filled})
        left = [f"attention.{name}" for name in left if name not in known]
    config, more = _matching(says, MultiHeadDispatchConfig)
    ignored("build_multi_head_attention", left + [name for name in more if name != "attention"])
    return MultiHeadDispatch.from_config(config)
