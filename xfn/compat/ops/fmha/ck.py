"""The operator of AMD's devices: any backend."""

from .common import AttentionBwOpBase, AttentionFwOpBase


class FwOp(AttentionFwOpBase):
    """The value."""

    NAME = "ckF"


class BwOp(AttentionBwOpBase):
    """The gradient."""

    NAME = "ckB"
