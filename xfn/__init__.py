"""xfn: every attention, under every transform, on every device."""

from . import bias as bias
from . import layout as layout
from . import patterns as patterns
from . import random as random
from . import sparsity as sparsity
from ._core.errors import KeyRequired as KeyRequired
from ._core.errors import ShapeError as ShapeError
from ._core.errors import Unsupported as Unsupported
from .ops.attention import attention as attention
from .ops.attention import attention_with_lse as attention_with_lse
from .ops.blocksparse import blocksparse_attention as blocksparse_attention
from .ops.blocksparse import blocksparse_attention_with_lse as blocksparse_attention_with_lse
from .ops.merge import merge_attentions as merge_attentions
from .ops.recompute import recompute as recompute
from .ops.reversible import reversible as reversible
from .ops.sddmm import sddmm as sddmm
from .ops.sparse_attention import sparse_attention as sparse_attention
from .ops.sparse_attention import sparse_attention_with_lse as sparse_attention_with_lse
from .ops.sparse_softmax import sparse_softmax as sparse_softmax
from .ops.spmm import spmm as spmm

__version__ = "0.1.0"
