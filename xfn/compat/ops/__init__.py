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

AttentionMask = AttentionBias
