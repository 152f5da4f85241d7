"""The softmax over a pattern's rows in plain torch."""

from ..._core import sparse
from ..._core.dispatch import Call
from .products import Gathered

FAMILY = sparse.Softmax(Gathered)
forward, backward, jvp, hvp, jvp2 = FAMILY.forward, FAMILY.backward, FAMILY.jvp, FAMILY.hvp, FAMILY.jvp2


def supports(call: Call) -> list[str]:
    """Nothing speaks against it: plain torch runs everywhere."""
    return []
