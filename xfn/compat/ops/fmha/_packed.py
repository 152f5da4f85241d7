"""Caches of four-bit numbers, eight of them in an int32, behind a scale and a shift for each group of a row.

a row                  groups · (scale, shift), two float16 in one; then K / 8 · eight numbers, lowest first
number n of group g    scale[g] · n + shift[g], with n from 0 to 15
"""

import torch
from torch import Tensor


def unpacked(x: Tensor, groups: int) -> Tensor:
    """``[..., groups + K / 8]`` integers as ``[..., K]`` in float32."""
    scale, shift = x[..., :groups].contiguous().view(torch.float16).float().unflatten(-1, (groups, 2)).unbind(-1)
    bits = torch.arange(0, 32, 4, device=x.device)
    numbers = (x[..., groups:, None].long() >> bits & 15).flatten(-2).unflatten(-1, (groups, -1))
    floats: Tensor = numbers * scale[..., None] + shift[..., None]
    return floats.flatten(-2)


def groups_of(K: int, k: Tensor, v: Tensor) -> int:
    """How many groups there are in a row of keys of K features."""
    groups = k.shape[-1] - K // 8
    if K % 8 or groups < 1 or K // 8 % groups or (v.shape[-1] - groups) % groups or v.shape[-1] <= groups:
        raise ValueError(
            f"int32 keys and values hold eight numbers of four bits each, behind an int32 for each group of a row: "
            f"for query [..., {K}] that is [..., groups + {K} / 8], but got {list(k.shape)} and {list(v.shape)}"
        )
    return groups
