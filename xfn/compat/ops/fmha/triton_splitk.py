"""The operator in Triton that shares the keys of few queries out; it has the value alone."""

from typing import ClassVar

from .common import AttentionFwOpBase


class FwOp(AttentionFwOpBase):
    """The value."""

    NAME = "triton_splitKF"
    BACKENDS = ("triton",)
    SPLIT_K: ClassVar[int | None] = None
    NUM_GROUPS: ClassVar[int] = 1


def _split(parts: int) -> type[FwOp]:
    return type(f"FwOp_S{parts}", (FwOp,), {"SPLIT_K": parts, "NAME": f"triton_splitK{parts}"})


FwOp_Map = {parts: _split(parts) for parts in (1, 2, 4, 8, 16, 32, 48, 64, 72, 80, 96, 112, 128)}
FwOp_S1, FwOp_S2, FwOp_S4, FwOp_S8, FwOp_S16, FwOp_S32 = list(FwOp_Map.values())[:6]
FwOp_S64, FwOp_S128 = FwOp_Map[64], FwOp_Map[128]
