"""The operator of FlashAttention 3: any backend."""

from .common import AttentionBwOpBase, AttentionFwOpBase


class FwOp(AttentionFwOpBase):
    """The value."""

    NAME = "flash3F"


class BwOp(AttentionBwOpBase):
    """The gradient."""

    NAME = "flash3B"
