"""The operator for few features: any backend."""

from .common import AttentionBwOpBase, AttentionFwOpBase


class FwOp(AttentionFwOpBase):
    """The value."""

    NAME = "small_kF"


class BwOp(AttentionBwOpBase):
    """The gradient."""

    NAME = "small_kB"
