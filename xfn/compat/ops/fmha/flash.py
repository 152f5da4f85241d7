"""The operator of FlashAttention: any backend."""

from .common import AttentionBwOpBase, AttentionFwOpBase


class FwOp(AttentionFwOpBase):
    """The value."""

    NAME = "flashF"


class BwOp(AttentionBwOpBase):
    """The gradient."""

    NAME = "flashB"
