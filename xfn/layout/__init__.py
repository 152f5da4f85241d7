"""Layout: which tiles of an attention there are.

One value says, for all heads or head by head, which tiles of ``block`` queries by ``block`` keys are computed at all,
and for tiles that are live in part, which of their coefficients. Layouts combine with ``|``, ``&`` and ``~``; lengths
are any, and the last tiles may be ragged. Kernels read look-up tables that are built with the value.

            causal   local, window=block   fixed, window=2·block   bigbird, random=0   longformer, causal
    n →     1 0 0 0  1 1 0 0               1 0 0 0                 1 1 1 1             1 0 0 0
    m ↓     1 1 0 0  1 1 1 0               1 1 0 0                 1 1 1 0             1 1 0 0
            1 1 1 0  0 1 1 1               0 1 1 0                 1 1 1 1             1 1 1 0
            1 1 1 1  0 0 1 1               0 1 1 1                 1 0 1 1             1 0 1 1
"""

from .flex import from_block_mask as from_block_mask
from .flex import to_block_mask as to_block_mask
from .published import bigbird as bigbird
from .published import global_ as global_
from .published import longformer as longformer
from .published import random as random
from .published import variable as variable
from .regular import causal as causal
from .regular import dense as dense
from .regular import fixed as fixed
from .regular import from_mask as from_mask
from .regular import local as local
from .regular import strided as strided
from .value import Layout as Layout
from .value import stack as stack
