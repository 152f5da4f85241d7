"""The operator in Triton."""

from .common import AttentionBwOpBase, AttentionFwOpBase


class FwOp(AttentionFwOpBase):
    """The value."""

    NAME = "tritonF"
    BACKENDS = ("triton",)


class BwOp(AttentionBwOpBase):
    """The gradient."""

    NAME = "tritonB"
    BACKENDS = ("triton",)
