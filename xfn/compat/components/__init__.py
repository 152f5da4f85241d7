"""``xformers.components`` under its old names."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ._registry import arguments, ignored, looked_up
from ._registry import built as _built
from ._registry import generate_matching_config as _matching
from .attention import ATTENTION_REGISTRY as _ATTENTIONS
from .attention import Attention as Attention
from .attention import build_attention as build_attention
from .attention import register_attention as register_attention
from .input_projection import InProjParams as InProjParams
from .input_projection import InputProjection as InputProjection
from .input_projection import InputProjectionConfig as InputProjectionConfig
from .multi_head_dispatch import MultiHeadDispatch as MultiHeadDispatch
from .multi_head_dispatch import MultiHeadDispatchConfig as MultiHeadDispatchConfig


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
