"""``xformers.ops.fmha``: attention, its biases and its operators, under their old names."""

from . import attn_bias as attn_bias
from . import ck as ck
from . import ck_splitk as ck_splitk
from . import cutlass as cutlass
from . import cutlass_blackwell as cutlass_blackwell
from . import decoder as decoder
from . import dispatch as dispatch
from . import flash as flash
from . import flash3 as flash3
from . import merge_training as merge_training
from . import small_k as small_k
from . import triton as triton
from . import triton_splitk as triton_splitk
from .attention import memory_efficient_attention as memory_efficient_attention
from .attention import memory_efficient_attention_backward as memory_efficient_attention_backward
from .attention import memory_efficient_attention_forward as memory_efficient_attention_forward
from .attention import (
    memory_efficient_attention_forward_requires_grad as memory_efficient_attention_forward_requires_grad,
)
from .attention import memory_efficient_attention_partial as memory_efficient_attention_partial
from .attn_bias import AttentionBias as AttentionBias
from .attn_bias import BlockDiagonalCausalMask as BlockDiagonalCausalMask
from .attn_bias import BlockDiagonalMask as BlockDiagonalMask
from .attn_bias import LowerTriangularMask as LowerTriangularMask
from .common import AttentionBwOpBase as AttentionBwOpBase
from .common import AttentionFwOpBase as AttentionFwOpBase
from .common import AttentionOp as AttentionOp
from .common import AttentionOpBase as AttentionOpBase
from .common import Inputs as Inputs
from .merge import merge_attentions as merge_attentions

MemoryEfficientAttentionCkOp = (ck.FwOp, ck.BwOp)
MemoryEfficientAttentionSplitKCkOp = (ck_splitk.FwOp, ck.BwOp)
MemoryEfficientAttentionCutlassOp = (cutlass.FwOp, cutlass.BwOp)
MemoryEfficientAttentionCutlassFwdFlashBwOp = (cutlass.FwOp, flash.BwOp)
MemoryEfficientAttentionDecoderOp = (decoder.FwOp, cutlass.BwOp)
MemoryEfficientAttentionFlashAttentionOp = (flash.FwOp, flash.BwOp)
MemoryEfficientAttentionOp = (small_k.FwOp, small_k.BwOp)
MemoryEfficientAttentionSplitKOp = (triton_splitk.FwOp, cutlass.BwOp)
MemoryEfficientAttentionTritonFwdFlashBwOp = (triton.FwOp, flash.BwOp)
TritonFlashAttentionOp = (triton.FwOp, triton.BwOp)

ALL_FW_OPS = [op.FwOp for op in (cutlass, flash, flash3, triton, triton_splitk, small_k, decoder)]
ALL_BW_OPS = [op.BwOp for op in (cutlass, flash, flash3, triton, small_k)]
