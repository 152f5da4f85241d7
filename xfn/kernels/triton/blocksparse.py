"""Attention over a layout in Triton: the kernels of attention, which walk its lists of live tiles."""

from .attention import backward as backward
from .attention import dual as dual
from .attention import forward as forward
from .attention import hvp as hvp
from .attention import jvp as jvp
from .attention import jvp2 as jvp2
from .attention import supports as supports
