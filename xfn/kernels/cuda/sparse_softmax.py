"""The softmax over a pattern's rows in CUDA."""

from ..._core import sparse
from .products import DETAIL as DETAIL
from .products import Launched
from .products import supports as supports

FAMILY = sparse.Softmax(Launched)
forward, backward, jvp, hvp, jvp2 = FAMILY.forward, FAMILY.backward, FAMILY.jvp, FAMILY.hvp, FAMILY.jvp2
