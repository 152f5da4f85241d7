"""The operator of Blackwell's devices: any backend."""

from .common import AttentionBwOpBase, AttentionFwOpBase


class FwOp(AttentionFwOpBase):
    """The value."""

    NAME = "cutlass_blackwellF"


class BwOp(AttentionBwOpBase):
    """The gradient."""

    NAME = "cutlass_blackwellB"
