"""Where tokens stand, and the angles that this gives them.

Positions are integers, and angles position × frequency in float64, whatever they are for: at position 100000 an angle
of float32 is off by 0.005, and one of bfloat16 by dozens of turns.
"""

import torch
from torch import Tensor

from .._core.errors import ShapeError
from .._core.kinds import check_number, is_integer

Positions = int | Tensor
"""Where the first token stands, the others behind it, or where each does, ``[..., M]``."""


def placed(positions: Positions, M: int, device: torch.device, name: str = "positions") -> Tensor:
    """Where each of M tokens stands: int64 ``[..., M]``."""
    if not is_integer(positions):
        got = f"a tensor of {positions.dtype}" if isinstance(positions, Tensor) else repr(positions)
        raise TypeError(f"{name} is an integer, or a tensor of integers [..., M], but got {got}")
    if not isinstance(positions, Tensor) or not positions.dim():
        return torch.arange(M, device=device) + positions
    if positions.device != device:
        raise ValueError(f"{name} is on {positions.device}, but what stands there on {device}")
    if positions.shape[-1] != M:
        raise ShapeError(
            f"{name} [..., M] has shape {list(positions.shape)}, but there are M={M} tokens: "
            "pass the position of each, or that of the first"
        )
    return positions.long()


def frequencies(width: int, base: float, device: torch.device) -> Tensor:
    """base^(−2i / width) for i < width / 2, in float64: ``[⌈width / 2⌉]``."""
    if check_number("base", base) <= 0:
        raise ValueError(f"base={base} must be above 0")
    return base ** (torch.arange(0, width, 2, dtype=torch.float64, device=device) / -max(1, width))


def angles(positions: Tensor, frequencies: Tensor) -> Tensor:
    """``[..., M]`` and ``[F]`` to float64 ``[..., M, F]``."""
    return positions.double().unsqueeze(-1) * frequencies
