"""What masks say, as xfn's attention takes it."""

import torch
from torch import Tensor

from ...._core.levels import plain
from ....parts._patterns import FEW
from ....sparsity import Csr
from ._sputnik_sparse import SparseCS
from .attention_mask import AttentionMask

DENSITY_THRESHOLD = 0.30
"""Of what ``maybe_sparsify`` makes dense."""
Mask = Tensor | AttentionMask | SparseCS | None


def taken(mask: Mask, n: int, M: int, N: int, padding: Tensor | None = None) -> Tensor | Csr | None:
    """A mask of n examples, or heads of examples, as what is added to ``[n, 1, M, N]``, as what it keeps, or as its
    entries, where they are few.

    A mask of fewer examples than n is that of each one's heads, which come one after another; a longer one is cropped.
    """
    if isinstance(mask, Tensor) and mask.is_sparse:
        mask = entries(mask)
    if isinstance(mask, SparseCS):
        if padding is None:
            return mask.csr
        mask = mask.csr.to_mask().reshape(mask.csr.shape)
    if isinstance(mask, AttentionMask):
        mask = mask.values
    if mask is not None:
        mask = spread(mask[..., :M, :N] if M == N else mask, n)
        if mask.shape[-1] not in (1, N) or mask.shape[-2] not in (1, M):
            raise ValueError(f"a mask is [..., {M}, {N}] here, but got {list(mask.shape)}")
    if padding is not None:
        return merged(mask, spread(padding.reshape(-1, 1, padding.shape[-1]), n))
    if mask is not None and mask.dtype == torch.bool and few(mask):
        return Csr.from_mask(mask)
    return mask


def entries(mask: Tensor) -> Tensor | SparseCS:
    """A sparse tensor as what it keeps, sparse where all examples keep the same; with a negative number it is added."""
    found = mask.to_dense()
    if found.is_floating_point() and bool((found < 0).any()):
        return found
    kept = found != 0
    return kept if kept.dim() > 2 and bool((kept != kept[:1]).any()) else SparseCS(kept)


def spread(mask: Tensor, n: int) -> Tensor:
    """``[M, N]``, ``[B, M, N]`` or ``[B, H|1, M, N]`` as ``[M, N]`` or ``[n, 1, M, N]``."""
    if mask.dim() == 4:
        mask = mask.expand(-1, n // len(mask) if mask.shape[1] == 1 else -1, -1, -1).flatten(0, 1)
    if mask.dim() == 2:
        return mask
    if mask.dim() != 3 or (len(mask) and n % len(mask)):
        raise ValueError(f"a mask is [M, N], [B, M, N] or [B, H, M, N] of B · H = {n}, but got {list(mask.shape)}")
    return mask[0] if len(mask) == 1 else mask.repeat_interleave(n // len(mask), 0).unsqueeze(1)


def merged(mask: Tensor | None, padding: Tensor) -> Tensor:
    """A mask, and key padding, which is True where a key is one or is added."""
    if mask is None:
        return padding
    if mask.dtype == padding.dtype == torch.bool:
        return mask & padding
    return additive(mask) + additive(padding)


def additive(mask: Tensor) -> Tensor:
    """A mask that is added."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)


def few(mask: Tensor) -> bool:
    """Whether one pattern for all keeps so little that its entries cost less than tiles, and it can be asked."""
    if mask.dim() > 2 or not mask.numel() or torch.compiler.is_compiling() or not plain((mask,)):
        return False
    return bool(mask.sum() < FEW * mask.numel())
