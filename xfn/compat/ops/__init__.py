"""``xformers.ops`` under its old names."""

from . import fmha as fmha
from .fmha import AttentionBias as AttentionBias
from .fmha import AttentionBwOpBase as AttentionBwOpBase
from .fmha import AttentionFwOpBase as AttentionFwOpBase
from .fmha import AttentionOp as AttentionOp
from .fmha import AttentionOpBase as AttentionOpBase
from .fmha import LowerTriangularMask as LowerTriangularMask
from .fmha import MemoryEfficientAttentionCutlassFwdFlashBwOp as MemoryEfficientAttentionCutlassFwdFlashBwOp
from .fmha import MemoryEfficientAttentionCutlassOp as MemoryEfficientAttentionCutlassOp
from .fmha import MemoryEfficientAttentionDecoderOp as MemoryEfficientAttentionDecoderOp
from .fmha import MemoryEfficientAttentionFlashAttentionOp as MemoryEfficientAttentionFlashAttentionOp
from .fmha import MemoryEfficientAttentionOp as MemoryEfficientAttentionOp
from .fmha import MemoryEfficientAttentionSplitKOp as MemoryEfficientAttentionSplitKOp
from .fmha import MemoryEfficientAttentionTritonFwdFlashBwOp as MemoryEfficientAttentionTritonFwdFlashBwOp
from .fmha import TritonFlashAttentionOp as TritonFlashAttentionOp
from .fmha import memory_efficient_attention as memory_efficient_attention
from .fmha import memory_efficient_attention_backward as memory_efficient_attention_backward
from .fmha import memory_efficient_attention_forward as memory_efficient_attention_forward
from .fmha import memory_efficient_attention_forward_requires_grad as memory_efficient_attention_forward_requires_grad
from .fmha import memory_efficient_attention_partial as memory_efficient_attention_partial
from .fmha import merge_attentions as merge_attentions
from .rmsnorm import RMSNorm as RMSNorm
from .rmsnorm import rms_norm as rms_norm
from .rmsnorm import rms_norm_add as rms_norm_add
from .rope_padded import rope_padded as rope_padded
from .rope_padded import rope_padded_functional as rope_padded_functional
from .swiglu_op import SwiGLU as SwiGLU
from .swiglu_op import SwiGLUEagerOp as SwiGLUEagerOp
from .swiglu_op import SwiGLUFusedOp as SwiGLUFusedOp
from .swiglu_op import SwiGLUOp as SwiGLUOp
from .swiglu_op import SwiGLUOpDispatch as SwiGLUOpDispatch
from .swiglu_op import SwiGLUPackedFusedOp as SwiGLUPackedFusedOp
from .swiglu_op import swiglu as swiglu
from .swiglu_op import swiglu_packed as swiglu_packed

AttentionMask = AttentionBias
