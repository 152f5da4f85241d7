"""The operator for few queries of many sequences: any backend; it has the value alone."""

from .common import AttentionFwOpBase


class FwOp(AttentionFwOpBase):
    """The value."""

    NAME = "decoderF"
