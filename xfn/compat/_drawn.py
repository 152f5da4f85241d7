"""Keys of dropout for functions whose own libraries draw from a generator that nobody passes."""

import torch
from torch import Tensor


def drawn(p: float, device: torch.device) -> Tensor | None:
    """A key from torch's generator, which ``torch.manual_seed`` seeds, where anything is dropped."""
    return torch.randint(2**32, (2,)).to(device) if p else None
