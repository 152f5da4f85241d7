"""The terms of a bias, and the normal form in which kernels see it.

lo[m] ≤ n < hi[m]     the keys that query m may see, or None for no bound      [..., M]
dense                 added where it floats, hides where it is False           [..., H|1, M|1, N|1]
slopes                -slopes[h] · |m − n| is added                            [..., H]
"""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .errors import ShapeError
from .pytree import pytree, static

Corner = Literal["top-left", "bottom-right"]


class Resolved(NamedTuple):
    """A bias in its normal form; what is ``None`` neither hides nor adds anything."""

    lo: Tensor | None = None
    hi: Tensor | None = None
    dense: Tensor | None = None
    slopes: Tensor | None = None


@pytree
class Band:
    """Keys between two diagonals; ``None`` is no limit on that side."""

    left: int | None = static()
    right: int | None = static()
    corner: Corner = static()

    def span(self, m: Tensor, shift: int | Tensor) -> tuple[Tensor | None, Tensor | None]:
        """lo and hi of queries ``m``, when the bottom-right corner lies ``shift`` keys right of the diagonal."""
        at = m + shift if self.corner == "bottom-right" else m
        return None if self.left is None else at - self.left, None if self.right is None else at + self.right + 1

    def resolve(self, M: int, N: int, device: torch.device | None) -> Resolved:
        return Resolved(*self.span(torch.arange(M, device=device), N - M))


@pytree
class Segments:
    """Segment i of the queries sees segment i of the keys, less what its bands hide."""

    queries: Tensor
    starts: Tensor
    keys: Tensor
    bands: tuple[Band, ...] = static(default=())
    lengths: tuple[int, ...] | None = static(default=None)
    total: int | None = static(default=None)

    def resolve(self, M: int, N: int, device: torch.device | None) -> Resolved:
        """A query behind the last segment sees nothing."""
        if self.lengths is not None and sum(self.lengths) != M:
            raise ShapeError(f"the segments hold {sum(self.lengths)} queries {list(self.lengths)}, but q has M={M}")
        if self.total is not None and self.total != N:
            raise ShapeError(f"the segments hold {self.total} keys, but k has N={N}")
        queries, starts, keys = (t.to(device) for t in (self.queries, self.starts, self.keys))
        ends = queries.cumsum(-1)
        marks = torch.zeros_like(ends[..., :1]).expand(*ends.shape[:-1], M + 1)
        owner = marks.scatter_add(-1, ends.clamp(max=M), torch.ones_like(ends)).cumsum(-1)[..., :-1]
        inside, owner = owner < ends.shape[-1], owner.clamp(max=ends.shape[-1] - 1)
        first, count, start, size = (t.gather(-1, owner) for t in (ends - queries, queries, starts, keys))
        m = torch.arange(M, device=device) - first
        spans = [band.span(m, size - count) for band in self.bands]
        lo = _fold(torch.maximum, [torch.zeros_like(size), *(lo for lo, _ in spans)])
        hi = _fold(torch.minimum, [size, *(hi for _, hi in spans)])
        return Resolved(*(torch.where(inside, start + bound, 0) for bound in (lo, hi) if bound is not None))


@pytree
class Interval:
    """Query m sees the keys lo[m] ≤ n < hi[m]."""

    lo: Tensor
    hi: Tensor

    def resolve(self, M: int, N: int, device: torch.device | None) -> Resolved:
        return Resolved(self.lo.to(device), self.hi.to(device))


@pytree
class Alibi:
    """``-slopes[h] · |m − n|`` is added."""

    slopes: Tensor

    def resolve(self, M: int, N: int, device: torch.device | None) -> Resolved:
        return Resolved(slopes=self.slopes)


@pytree
class Dense:
    """A floating tensor is added; a boolean one hides where it is False."""

    tensor: Tensor

    def resolve(self, M: int, N: int, device: torch.device | None) -> Resolved:
        return Resolved(dense=self.tensor[(None,) * (3 - self.tensor.dim())])


Term = Band | Segments | Interval | Alibi | Dense


def resolve(terms: Sequence[Term], M: int, N: int, device: torch.device | None) -> Resolved:
    """The normal form of a sum of terms; every bound lies in [0, N]."""
    parts = [term.resolve(M, N, device) for term in terms]
    lo = _fold(torch.maximum, (p.lo for p in parts))
    hi = _fold(torch.minimum, (p.hi for p in parts))
    return Resolved(
        None if lo is None else lo.clamp(0, N).expand(*lo.shape[:-1], M),
        None if hi is None else hi.clamp(0, N).expand(*hi.shape[:-1], M),
        _fold(_add, (p.dense for p in parts)),
        _fold(torch.add, (p.slopes for p in parts)),
    )


def _fold(f: Callable[[Tensor, Tensor], Tensor], tensors: Iterable[Tensor | None]) -> Tensor | None:
    present = [t for t in tensors if t is not None]
    return reduce(f, present) if present else None


def _add(a: Tensor, b: Tensor) -> Tensor:
    """Two dense terms as one."""
    if a.dtype == torch.bool and b.dtype == torch.bool:
        return a & b
    if a.dtype == torch.bool:
        return torch.where(a, b, -torch.inf)
    return torch.where(b, a, -torch.inf) if b.dtype == torch.bool else a + b
