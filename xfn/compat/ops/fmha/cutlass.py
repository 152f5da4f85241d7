"""The operator for every bias and dtype: any backend."""

from .common import AttentionBwOpBase, AttentionFwOpBase


class FwOp(AttentionFwOpBase):
    """The value."""

    NAME = "cutlassF"


class BwOp(AttentionBwOpBase):
    """The gradient."""

    NAME = "cutlassB"
