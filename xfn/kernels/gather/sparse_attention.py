"""Attention over a pattern's entries in plain torch: O(Z) memory, every member of the family."""

from torch import Tensor

from ..._core import sparse
from ..._core.dispatch import Call
from ..._core.entries import Group
from .products import Gathered

FAMILY = sparse.Attention(Gathered)
backward, jvp, hvp, jvp2 = FAMILY.backward, FAMILY.jvp, FAMILY.hvp, FAMILY.jvp2


def supports(call: Call) -> list[str]:
    """Nothing speaks against it: plain torch runs everywhere."""
    return []


def forward(x: Group, c: Group, *, p: float, scale: float) -> tuple[Tensor, Tensor]:
    entries = Gathered(c[:5])
    at = sparse.Point(entries, x, c[5], p, scale)
    return at.whole((), at.out((at.P, at.v)), entries.logsumexp(at.s))
