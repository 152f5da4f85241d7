"""Masks that are added to logits."""

from typing import Any

import torch
from torch import Tensor

from ....patterns import causal_1d


class AttentionMask:
    """An additive mask ``[B|1, M, N]``: 0 where a query sees a key, −∞ where it does not.

    Args:
        additive_mask: ``[M, N]`` or ``[B|1, M, N]``, of a floating dtype.
        is_causal: whether it is known to hide the future, and that alone.

    Example:
        >>> AttentionMask.make_causal(2).to_bool()
        tensor([[[ True, False],
                 [ True,  True]]])
    """

    is_sparse = False

    def __init__(self, additive_mask: Tensor, is_causal: bool = False) -> None:
        assert additive_mask.is_floating_point(), f"an additive mask is floating, but got {additive_mask.dtype}"
        assert not additive_mask.requires_grad, "a mask has no gradient: pass a tensor instead"
        self.values = additive_mask if additive_mask.dim() > 2 else additive_mask.unsqueeze(0)
        self.is_causal = is_causal

    @classmethod
    def from_bool(cls, x: Tensor) -> "AttentionMask":
        """What keeps where x is True."""
        assert x.dtype == torch.bool, f"from_bool takes booleans, but got {x.dtype}"
        return cls(torch.zeros(x.shape, device=x.device).masked_fill(~x, -torch.inf))

    @classmethod
    def from_multiplicative(cls, x: Tensor) -> "AttentionMask":
        """What keeps where x is not zero."""
        assert x.dtype != torch.bool, "a boolean mask is for from_bool"
        return cls.from_bool(x != 0)

    @classmethod
    def make_causal(
        cls, seq_len: int, to_seq_len: int | None = None, device: Any = None, dtype: torch.dtype | None = None
    ) -> "AttentionMask":
        """Query m of ``seq_len`` sees the keys n ≤ m of ``to_seq_len``, by default as many."""
        to_seq_len = to_seq_len or seq_len
        seen = causal_1d(max(seq_len, to_seq_len))[:seq_len, :to_seq_len]
        return cls(cls.from_bool(seen).values.to(device, dtype), is_causal=True)

    def make_crop(self, seq_len: int, to_seq_len: int | None = None) -> "AttentionMask":
        """The first ``seq_len`` queries and ``to_seq_len`` keys."""
        return AttentionMask(self.values[:, :seq_len, : to_seq_len or seq_len], self.is_causal)

    def to_bool(self) -> Tensor:
        """True where it keeps."""
        return self.values != -torch.inf

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> "AttentionMask":
        """On another device, or of another dtype."""
        return AttentionMask(self.values.to(device, dtype), self.is_causal)

    def __add__(self, other: "AttentionMask") -> "AttentionMask":
        return AttentionMask(self.values + other.values)

    @property
    def seq_len(self) -> int:
        return self.values.shape[-2]

    @property
    def to_seq_len(self) -> int:
        return self.values.shape[-1]

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def ndim(self) -> int:
        return self.values.dim()

    @property
    def shape(self) -> torch.Size:
        return self.values.shape
