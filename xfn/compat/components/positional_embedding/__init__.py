"""Positional embeddings by name."""

from collections.abc import Callable, Mapping
from typing import Any

from .._registry import Registry, ignored, looked_up, registering
from .._registry import built as _built
from .base import PositionEmbedding as PositionEmbedding
from .base import PositionEmbeddingConfig as PositionEmbeddingConfig
from .rotary import RotaryEmbedding as RotaryEmbedding

POSITION_EMBEDDING_REGISTRY: Registry = {}
register_positional_embedding: Callable[..., Callable[[type], type]] = registering(
    POSITION_EMBEDDING_REGISTRY, PositionEmbedding, PositionEmbeddingConfig
)


def build_positional_embedding(config: Mapping[str, Any] | PositionEmbeddingConfig) -> Any:
    """The embedding that a config names, which may say more than it takes: a warning names what is ignored.

    Args:
        config: ``{"name": …, "dim_model": …, "seq_len": …, …}``.

    Raises:
        KeyError: no embedding has that name.

    Example:
        >>> import torch
        >>> build_positional_embedding({"name": "sine", "dim_model": 8})(torch.ones(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """
    if isinstance(config, PositionEmbeddingConfig):
        return looked_up(POSITION_EMBEDDING_REGISTRY, "embedding", config.name).constructor.from_config(config)
    name = config.get("name")
    made, left = _built(looked_up(POSITION_EMBEDDING_REGISTRY, "embedding", name), config)
    ignored(str(name), [n for n in left if n != "seq_len"])
    return made


from .learnable import LearnablePositionalEmbedding as LearnablePositionalEmbedding  # noqa: E402
from .sine import SinePositionalEmbedding as SinePositionalEmbedding  # noqa: E402
from .vocab import VocabEmbedding as VocabEmbedding  # noqa: E402
