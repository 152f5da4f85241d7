"""In which order operators were tried, and the first of them that can run a call.

They are names here: what runs a call is chosen by this library, and these functions tell what it was called.
"""

from collections.abc import Sequence
from typing import TypeVar

from . import cutlass, flash, flash3, triton_splitk
from .attn_bias import BlockDiagonalMask
from .common import AttentionBwOpBase, AttentionFwOpBase, AttentionOpBase, Inputs

T = TypeVar("T", bound=AttentionOpBase)


def _dispatch_fw_priority_list(inp: Inputs, needs_gradient: bool) -> Sequence[type[AttentionFwOpBase]]:
    """For few queries of many keys, whose heads share one, those first that share keys out."""
    several: list[type[AttentionFwOpBase]] = [flash3.FwOp, flash.FwOp, cutlass.FwOp]
    q, k = inp.query, inp.key
    one_head = k.dim() > 3 and k.shape[-2] > 1 and k.stride(-2) == 0
    if needs_gradient or not one_head or q.shape[1] > 32 or k.shape[1] < 256 or not 0 < q.shape[0] * q.shape[2] < 64:
        return several
    if isinstance(inp.attn_bias, BlockDiagonalMask):
        return [triton_splitk.FwOp, *several]
    return [flash.FwOp, triton_splitk.FwOp, cutlass.FwOp]


def _dispatch_fw(inp: Inputs, needs_gradient: bool) -> type[AttentionFwOpBase]:
    return _first(_dispatch_fw_priority_list(inp, needs_gradient), inp)


def _dispatch_bw(inp: Inputs, varlen_lse_packed: bool | None = None) -> type[AttentionBwOpBase]:
    several: list[type[AttentionBwOpBase]] = [flash3.BwOp, flash.BwOp, cutlass.BwOp]
    return _first(several, inp)


def _first(several: Sequence[type[T]], inp: Inputs) -> type[T]:
    against = {op: op.not_supported_reasons(inp) for op in several}
    for op, reasons in against.items():
        if not reasons:
            return op
    lines = [f"{op.NAME}: {'; '.join(reasons)}" for op, reasons in against.items()]
    raise NotImplementedError("\n    ".join(["no operator can run this call", *lines]))
