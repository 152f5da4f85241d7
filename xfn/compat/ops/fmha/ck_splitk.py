"""The operator of AMD's devices that shares the keys of few queries out: any backend; it has the value alone."""

from .common import AttentionFwOpBase


class FwOp(AttentionFwOpBase):
    """The value."""

    NAME = "ck_splitKF"


class FwOp_S1(FwOp):
    """The value, of keys in one part."""

    NAME = "ck_splitK1"


class FwOp_S2(FwOp):
    """The value, of keys in two parts."""

    NAME = "ck_splitK2"


class FwOp_S4(FwOp):
    """The value, of keys in four parts."""

    NAME = "ck_splitK4"
