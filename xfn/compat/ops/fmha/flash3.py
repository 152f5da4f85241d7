"""The operator of FlashAttention 3: any backend."""

from .common import AttentionBwOpBase, AttentionFwOpBase


class FwOp(AttentionFwOpBase):
    """The value."""

    NAME = "flash3F"


class BwOp(AttentionBwOpBase):
    """The gradient."""

    NAME = "flash3B"


class FwOp_KVSplit(FwOp):
    """The value, for few queries of many keys."""

    NAME = "flash3F_KVSplit"


def mask_non_zeros(s_q: int, s_k: int, window_left: int, window_right: int) -> int:
    """How many pairs a window keeps that ends with the last query and key; a negative side is open."""
    first = [0 if window_left < 0 else max(0, s_k - s_q + i - window_left) for i in range(s_q)]
    last = [s_k if window_right < 0 else min(s_k, s_k - s_q + i + window_right + 1) for i in range(s_q)]
    return sum(max(0, hi - lo) for lo, hi in zip(first, last, strict=True))
