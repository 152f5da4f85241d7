"""Each place of a square looks at a large neighbourhood, feature by feature."""

from typing import Any

import torch
from torch import Tensor

from ....parts.attention.visual import Visual as _Visual
from .._registry import Strict, ignored
from . import Attention, register_attention


class LKA(torch.nn.Module):
    """The convolutions of :class:`Visual`, under the names of its checkpoints."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv0 = torch.nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv_spatial = torch.nn.Conv2d(dim, dim, 7, padding=9, groups=dim, dilation=3)
        self.conv1 = torch.nn.Conv2d(dim, dim, 1)


@register_attention("visual")
class Visual(Attention, Strict):
    """x + down(u ∘ mix(far(near(u)))) with u = gelu(up x), over a square.

    Args:
        dim_model: E.
    """

    requires_skip_multi_head = True
    requires_input_projection = False
    requires_squared_context = True
    requires_same_k_q_dimensions = True
    supports_attention_mask = False

    def __init__(self, dim_model: int, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        ignored("Visual", kwargs)
        conv = torch.nn.Conv2d
        self.block = torch.nn.Sequential(
            conv(dim_model, dim_model, 1), torch.nn.GELU(), LKA(dim_model), conv(dim_model, dim_model, 1)
        )

    def forward(self, q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Of ``q [B, S, E]`` alone."""
        block: Any = self.block
        up, lka, down = block[0], block[2], block[3]
        params = {name: mapping(m) for name, m in (("up", up), ("mix", lka.conv1), ("down", down))}
        params |= {name: each(m) for name, m in (("near", lka.conv0), ("far", lka.conv_spatial))}
        return _Visual().apply(params, q)


def mapping(conv: Any) -> dict[str, Tensor]:
    """A convolution of single places as a linear map."""
    return {"weight": conv.weight.flatten(1), "bias": conv.bias}


def each(conv: Any) -> dict[str, Tensor]:
    """A convolution of each feature by itself."""
    return {"weight": conv.weight.squeeze(1), "bias": conv.bias}
