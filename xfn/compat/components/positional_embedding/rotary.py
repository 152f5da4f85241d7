"""Rotary positions, as a module."""

import torch
from torch import Tensor

from ....ops.rotary import rotary


def rotate_half(x: Tensor) -> Tensor:
    """The second half of the features, negated, before the first."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], -1)


def apply_rotary_pos_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x ``[B, H, M, K]`` turned by angles whose cosines and sines are ``[1, 1, N, K]``, of which the first M are taken.

    Example:
        >>> apply_rotary_pos_emb(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
        tensor([[[[-1.,  1.]]]])
    """
    M = x.shape[-2]
    return x * cos[..., :M, :] + rotate_half(x) * sin[..., :M, :]


class RotaryEmbedding(torch.nn.Module):
    """q and k turned by angles that grow with their positions; feature i pairs with i + K / 2.

    Args:
        dim_model: K, the width of a head.

    Example:
        >>> q, k = RotaryEmbedding(8)(torch.ones(2, 3, 5, 8), torch.ones(2, 3, 6, 8))
        >>> q.shape, k.shape
        (torch.Size([2, 3, 5, 8]), torch.Size([2, 3, 6, 8]))
    """

    inv_freq: Tensor

    def __init__(self, dim_model: int, *args: object, **kwargs: object) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 10000 ** (-torch.arange(0, dim_model, 2).float() / dim_model))

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Both turned, of ``q [..., M, K]`` and ``k [..., N, K]``."""
        q, k = rotary(q.unsqueeze(-2), k.unsqueeze(-2))
        return q.squeeze(-2), k.squeeze(-2)
