"""The terms of a bias, and the normal form in which kernels see it.

lo[m] ≤ n < hi[m]     the keys that query m may see, or None for no bound      [..., M]
dense                 added where it floats, hides where it is False           [..., H|1, M|1, N|1]
slopes                -slopes[h] · |m − n| is added                            [..., H]
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, reduce
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .errors import ShapeError
from .kinds import FAR, is_integer
from .pytree import pytree, static
from .shapes import broadcastable

Corner = Literal["top-left", "bottom-right"]
Lengths = Sequence[int] | Tensor


class Resolved(NamedTuple):
    """A bias in its normal form; what is ``None`` neither hides nor adds anything."""

    lo: Tensor | None = None
    hi: Tensor | None = None
    dense: Tensor | None = None
    slopes: Tensor | None = None

    def visible(self, M: int, N: int, device: torch.device | None) -> Tensor:
        """True where a query may see a key: ``[..., H|1, M, N]``."""
        n = torch.arange(N, device=device)
        seen = torch.ones(1, M, N, dtype=torch.bool, device=device)
        if self.lo is not None:
            seen = seen & (n >= self.lo[..., None]).unsqueeze(-3)
        if self.hi is not None:
            seen = seen & (n < self.hi[..., None]).unsqueeze(-3)
        if self.dense is not None:
            seen = seen & (self.dense if self.dense.dtype == torch.bool else self.dense != -torch.inf)
        return seen

    def added_to(self, logits: Tensor) -> Tensor:
        """``logits [..., H|1, M, N]`` with what is added to the visible ones."""
        if self.slopes is not None:
            m, n = (torch.arange(size, device=logits.device) for size in logits.shape[-2:])
            logits = logits - self.slopes.to(logits.dtype)[..., None, None] * (m[:, None] - n).abs()
        if self.dense is not None and self.dense.dtype != torch.bool:
            logits = logits + torch.where(self.dense == -torch.inf, 0, self.dense).to(logits.dtype)
        return logits


@pytree
class Band:
    """Keys between two diagonals; ``None`` is no limit on that side."""

    left: int | None = static()
    right: int | None = static()
    corner: Corner = static()

    @staticmethod
    def of(left: int | None, right: int | None, corner: Corner) -> "Band":
        """Checked."""
        if corner not in get_args(Corner):
            raise ValueError(f"corner={corner!r} is neither of {list(get_args(Corner))}")
        left, right = (end if end is None else reach(name, end) for name, end in (("left", left), ("right", right)))
        return Band(left, right, corner)

    def span(self, m: Tensor, shift: int | Tensor) -> tuple[Tensor | None, Tensor | None]:
        """lo and hi of queries ``m``, when the bottom-right corner lies ``shift`` keys right of the diagonal."""
        at = m + shift if self.corner == "bottom-right" else m
        return None if self.left is None else at - self.left, None if self.right is None else at + self.right + 1

    def resolve(self, M: int, N: int, device: torch.device | None) -> Resolved:
        return Resolved(*self.span(torch.arange(M, device=device), N - M))


@pytree
class Integers:
    """Integers that are data, in a tensor, or structure, in a tuple."""

    tensor: Tensor | None = None
    fixed: tuple[int, ...] | None = static(default=None)

    @staticmethod
    def bound(name: str, value: Tensor | int) -> "Integers":
        """One per query, or one for all."""
        if isinstance(value, Tensor) and is_integer(value):
            return Integers((value if value.dim() else value[None]).long())
        if isinstance(value, Tensor) or not is_integer(value):
            raise TypeError(f"span takes integers, but {name} is {getattr(value, 'dtype', repr(value))}")
        return Integers(fixed=(max(-FAR, min(value, FAR)),))

    @staticmethod
    def lengths(name: str, value: Lengths) -> "Integers":
        """One per segment."""
        if isinstance(value, Tensor):
            if not is_integer(value) or value.dim() == 0:
                raise TypeError(f"{name} are integers [..., S], but got {value.dtype} {list(value.shape)}")
            return Integers(value.long())
        if not isinstance(value, Sequence) or not all(is_integer(n) for n in value):
            raise TypeError(f"{name} are integers, in a list or a tensor, but got {value!r}")
        if not value or min(value) < 0:
            raise ValueError(f"{name} are one or more integers from 0 on, but got {list(value)}")
        return Integers(fixed=tuple(value))

    def on(self, device: torch.device | None) -> Tensor:
        return torch.tensor(self.fixed, device=device) if self.tensor is None else self.tensor.to(device)

    @property
    def count(self) -> int:
        return len(self.fixed) if self.tensor is None else self.tensor.shape[-1]  # type: ignore[arg-type]


@pytree
class Segments:
    """Segment i of the queries sees segment i of the keys, less what its bands hide. The keys of a segment lie
    behind those of the one before, or start at multiples of ``padding``."""

    queries: Integers
    keys: Integers
    padding: int | None = static(default=None)
    bands: tuple[Band, ...] = static(default=())

    def resolve(self, M: int, N: int, device: torch.device | None) -> Resolved:
        """A query behind the last segment sees nothing."""
        self.check(M, N)
        queries, keys = self.queries.on(device), self.keys.on(device)
        if self.padding is None:
            starts = keys.cumsum(-1) - keys
        else:
            starts = (torch.arange(keys.shape[-1], device=device) * self.padding).expand_as(keys)
            keys = keys.clamp(max=self.padding)
        ends = queries.cumsum(-1)
        marks = torch.zeros_like(ends[..., :1]).expand(*ends.shape[:-1], M + 1)
        owner = marks.scatter_add(-1, ends.clamp(0, M), torch.ones_like(ends)).cumsum(-1)[..., :-1]
        inside, owner = owner < ends.shape[-1], owner.clamp(max=ends.shape[-1] - 1)
        first, count, start, size = (t.gather(-1, owner) for t in (ends - queries, queries, starts, keys))
        m = torch.arange(M, device=device) - first
        spans = [band.span(m, size - count) for band in self.bands]
        lo = _fold(torch.maximum, [torch.zeros_like(size), *(lo for lo, _ in spans)])
        hi = _fold(torch.minimum, [size, *(hi for _, hi in spans)])
        return Resolved(*(torch.where(inside, start + bound, 0) for bound in (lo, hi) if bound is not None))

    def check(self, M: int, N: int) -> None:
        """Lengths that are structure fill the queries and the keys."""
        queries, keys = self.queries.fixed, self.keys.fixed
        if queries is not None and sum(queries) != M:
            raise ShapeError(f"the segments hold {sum(queries)} queries {list(queries)}, but q has M={M}")
        slots = sum(keys) if keys is not None else None
        if self.padding is not None:
            slots = self.keys.count * self.padding
        if slots is not None and slots != N:
            raise ShapeError(f"the segments hold {slots} keys, but k has N={N}")


@pytree
class Interval:
    """Query m sees the keys lo[m] ≤ n < hi[m]."""

    lo: Integers
    hi: Integers

    def resolve(self, M: int, N: int, device: torch.device | None) -> Resolved:
        return Resolved(self.lo.on(device), self.hi.on(device))


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
    for bound in (bound for p in parts for bound in (p.lo, p.hi)):
        if bound is not None and bound.shape[-1] not in (1, M):
            raise ShapeError(f"a span has bounds for {bound.shape[-1]} queries, but q has M={M}")
    lo = _fold(torch.maximum, (p.lo for p in parts))
    hi = _fold(torch.minimum, (p.hi for p in parts))
    return Resolved(
        None if lo is None else lo.clamp(0, N).expand(*lo.shape[:-1], M),
        None if hi is None else hi.clamp(0, N).expand(*hi.shape[:-1], M),
        _fold(_add, (p.dense for p in parts)),
        _fold(_add, (p.slopes for p in parts)),
    )


KEPT = 8192
"""Queries of the longest bounds that are kept; a call of more takes so long that theirs are made in no time."""


def kept(terms: Sequence[Term], M: int, N: int) -> Resolved | None:
    """The normal form on a CPU, made once for all calls, where numbers alone tell it, as they do of bands."""
    bands = [t for t in terms if type(t) is Band]
    if M > KEPT or len(bands) < len(terms):
        return None
    return _kept(tuple([(t.left, t.right, t.corner) for t in bands]), M, N)


@lru_cache(maxsize=64)
def _kept(bands: tuple[tuple[int | None, int | None, Corner], ...], M: int, N: int) -> Resolved:
    with torch.inference_mode(False):  # what is made in that mode can be saved for no backward
        return resolve([Band(*band) for band in bands], M, N, torch.device("cpu"))


def reach(name: str, value: int) -> int:
    """A number of keys."""
    if not is_integer(value):
        raise TypeError(f"{name} is an integer, but got {value!r}")
    if value < 0:
        raise ValueError(f"{name}={value} reaches nowhere: it must be at least 0, or None for no limit")
    return min(value, FAR)


def _fold(f: Callable[[Tensor, Tensor], Tensor], tensors: Iterable[Tensor | None]) -> Tensor | None:
    present = [t for t in tensors if t is not None]
    return reduce(f, present) if present else None


def _add(a: Tensor, b: Tensor) -> Tensor:
    """Two dense terms, or two rows of slopes, as one."""
    if not broadcastable(a.shape, b.shape):
        raise ShapeError(f"two terms of a bias do not broadcast: {list(a.shape)} and {list(b.shape)}")
    if a.dtype == torch.bool and b.dtype == torch.bool:
        return a & b
    if a.dtype == torch.bool:
        return torch.where(a, b, -torch.inf)
    return torch.where(b, a, -torch.inf) if b.dtype == torch.bool else a + b
