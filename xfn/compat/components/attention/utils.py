"""Masks merged, and a pseudo-inverse."""

import torch
from torch import Tensor

from ....parts.attention.nystrom import Nystrom
from ._masks import additive


def reshape_key_padding_mask(key_padding_mask: Tensor, batched_dim: int) -> Tensor:
    """``[B, S]`` for heads that are folded into the batch: ``[B · H, 1, S]``."""
    assert key_padding_mask.dim() == 2, f"key padding is [B, S], but got {list(key_padding_mask.shape)}"
    heads = batched_dim // len(key_padding_mask)
    return key_padding_mask.repeat_interleave(heads, 0).unsqueeze(1)


def maybe_merge_masks(
    att_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    batch_size: int,
    src_len: int,
    num_heads: int,
    tgt_len: int | None = None,
) -> Tensor | None:
    """A mask that honours key padding ``[B, src]`` too: ``[B · H, tgt, src]``.

    Example:
        >>> maybe_merge_masks(None, torch.tensor([[True, False]]), 1, 2, 2).shape
        torch.Size([2, 2, 2])
    """
    if key_padding_mask is None:
        return att_mask
    assert key_padding_mask.shape == (batch_size, src_len), (
        f"key padding is {[batch_size, src_len]}, but got {list(key_padding_mask.shape)}"
    )
    kept = reshape_key_padding_mask(key_padding_mask, batch_size * num_heads)
    if att_mask is None:
        return kept.expand(-1, src_len if tgt_len is None else tgt_len, -1)
    if att_mask.dtype == torch.bool:
        return att_mask & kept
    return att_mask.masked_fill(~kept, -torch.inf)


def iterative_pinv(softmax_mat: Tensor, n_iter: int = 6, pinverse_original_init: bool = False) -> Tensor:
    """The pseudo-inverse of stochastic matrices ``[..., L, L]``, by iteration (Razavi et al., 2014).

    Example:
        >>> iterative_pinv(torch.eye(2)[None], 12).round()
        tensor([[[1., 0.],
                 [0., 1.]]])
    """
    return Nystrom(iterations=n_iter, original_init=pinverse_original_init).inverse(softmax_mat)


def bool_mask_to_additive(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """0 where a mask is True, −∞ where it is False."""
    assert mask.dtype == torch.bool, f"the mask is boolean, but got {mask.dtype}"
    return additive(mask).to(dtype)
