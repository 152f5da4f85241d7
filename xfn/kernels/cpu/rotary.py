"""Pairs of features turned, in C++: see xfn/csrc/cpu/turn.h."""

from collections.abc import Sequence

from torch import Tensor

from ..._core.kinds import wide
from ..._core.rows import fit
from ..._core.shapes import broadcast
from .rows import DETAIL as DETAIL
from .rows import ROTARY, ROTARY_BACKWARD, Group, Maybe, bits, cotangent
from .rows import certain as certain
from .rows import supports as supports


def forward(x: Group, c: Group, *, pairing: str) -> tuple[Tensor]:
    return (ROTARY(*_taken(x), pairing == "adjacent"),)


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, pairing: str) -> list[Maybe]:
    given = _taken(x, whole=any(needs[1:]))
    d = cotangent(dy[0], y[0])
    found = ROTARY_BACKWARD(*given, d.expand(given[0].shape), pairing == "adjacent", bits(needs))
    return [fit(grad, t, need) for grad, t, need in zip(found, x, needs, strict=True)]


def _taken(x: Group, whole: bool = False) -> list[Tensor]:
    """All of one batch, unless the tables have none and no gradient, and the tables in the dtype of sums."""
    given, *tables = (t for t in x if t is not None)
    tables = [t.to(wide(given.dtype)) for t in tables]
    if not whole and all(t.dim() == 2 for t in tables):
        return [given, *tables]
    batch = broadcast((tuple(given.shape[:-2]), *(tuple(t.shape[:-1]) for t in tables)))
    return [given.expand(*batch, *given.shape[-2:]), *(t.expand(*batch, t.shape[-1]) for t in tables)]
