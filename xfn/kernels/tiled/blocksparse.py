"""Attention over a layout in plain torch: as without one, 64 queries at a time, each against the keys of live tiles."""

from .attention import backward as backward
from .attention import forward as forward
from .attention import hvp as hvp
from .attention import jvp as jvp
from .attention import jvp2 as jvp2
from .attention import supports as supports
