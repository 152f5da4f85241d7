"""Keys for functions whose own libraries draw from a generator that nobody passes."""

import torch
from torch import Tensor

from .._core.philox import drawn as drawn


def dropping(p: float, device: torch.device) -> Tensor | None:
    """A key, where anything is dropped."""
    return drawn(device) if p else None
