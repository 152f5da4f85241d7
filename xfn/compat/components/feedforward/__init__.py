"""Feed-forwards by name."""

from collections.abc import Callable, Mapping
from typing import Any

from .._registry import Registry, ignored, looked_up, registering
from .._registry import built as _built
from .base import Feedforward as Feedforward
from .base import FeedforwardConfig as FeedforwardConfig

FEEDFORWARD_REGISTRY: Registry = {}
register_feedforward: Callable[..., Callable[[type], type]] = registering(
    FEEDFORWARD_REGISTRY, Feedforward, FeedforwardConfig
)


def build_feedforward(config: Mapping[str, Any] | FeedforwardConfig) -> Any:
    """The feed-forward that a config names, which may say more than it takes: a warning names what is ignored.

    Args:
        config: ``{"name": …, "dim_model": …, "dropout": …, "activation": …, …}``.

    Raises:
        KeyError: no feed-forward has that name.

    Example:
        >>> import torch
        >>> build_feedforward({"name": "MLP", "dim_model": 8, "activation": "relu"})(torch.ones(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """
    if isinstance(config, FeedforwardConfig):
        return looked_up(FEEDFORWARD_REGISTRY, "feed-forward", config.name).constructor.from_config(config)
    name = config.get("name")
    made, left = _built(looked_up(FEEDFORWARD_REGISTRY, "feed-forward", name), config)
    ignored(str(name), left)
    return made


from .conv_mlp import Conv2DFeedforward as Conv2DFeedforward  # noqa: E402
from .fused_mlp import FusedMLP as FusedMLP  # noqa: E402
from .mixture_of_experts import MixtureOfExperts as MixtureOfExperts  # noqa: E402
from .mlp import MLP as MLP  # noqa: E402
