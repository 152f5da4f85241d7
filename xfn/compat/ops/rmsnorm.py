"""Root mean square normalisation under its old names: x / √(mean x² + ε) · weight."""

import torch
from torch import Tensor

from ...ops import rms_norm as ours


def rms_norm(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
    """x / √(mean x² + ε) · weight, for every row.

    Args:
        x: ``[..., E]``.
        weight: ``[E]``, or None.
        eps: ε.

    Example:
        >>> rms_norm(torch.tensor([1.0, 7.0]), None)
        tensor([0.2000, 1.4000])
    """
    return ours.rms_norm({} if weight is None else {"weight": weight}, x, eps)


def rms_norm_add(x: Tensor, y: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
    """x becomes x + y, in place, and the norm of that is returned.

    Args:
        x, y: ``[..., E]``.
        weight: ``[E]``, or None.
        eps: ε.

    Example:
        >>> x = torch.tensor([1.0, 3.0])
        >>> rms_norm_add(x, torch.tensor([0.0, 4.0]), None), x
        (tensor([0.2000, 1.4000]), tensor([1., 7.]))
    """
    return rms_norm(x.add_(y), weight, eps)


class RMSNorm(torch.nn.Module):
    """:func:`rms_norm` with a weight, ones at first, or with none."""

    weight: torch.nn.Parameter | None

    def __init__(self, dim: int, include_weight: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(dim)) if include_weight else None

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def increment_and_forward_(self, x: Tensor, y: Tensor) -> Tensor:
        """x becomes x + y, in place, and the norm of that is returned."""
        return rms_norm_add(x, y, self.weight, self.eps)
