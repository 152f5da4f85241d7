"""Attention over a layout in C++: the kernels of attention, which walk its live tiles."""

from .attention import DETAIL as DETAIL
from .attention import backward as backward
from .attention import certain as certain
from .attention import dual as dual
from .attention import forward as forward
from .attention import hvp as hvp
from .attention import jvp as jvp
from .attention import jvp2 as jvp2
from .attention import supports as supports
from .library import swift

SWIFT = swift("blocksparse")
