"""sddmm in CUDA: the family of a bilinear op, from products over entries."""

from ..._core import sparse
from .products import DETAIL as DETAIL
from .products import Launched
from .products import supports as supports

FAMILY = sparse.sddmm(Launched)
forward, backward, jvp, hvp, jvp2 = FAMILY.forward, FAMILY.backward, FAMILY.jvp, FAMILY.hvp, FAMILY.jvp2
