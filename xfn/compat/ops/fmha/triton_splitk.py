"""The operator in Triton that shares the keys of few queries out; it has the value alone."""

from .common import AttentionFwOpBase


class FwOp(AttentionFwOpBase):
    """The value."""

    NAME = "triton_splitKF"
    BACKENDS = ("triton",)
    SUPPORTED_DEVICES = frozenset(("cuda",))
