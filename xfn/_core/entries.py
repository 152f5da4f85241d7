"""The families of ops over a pattern's entries, from four products that each language brings.

    between(q, k)        q[m] · k[n] for each entry (m, n)                   [..., H, Z]
    to_queries(a, v)     Σ a v[n] over the entries of row m                  [..., M, H, V]
    to_keys(a, q, G)     Σ a q[m] over the entries of column n               [..., N, G, K]
    softmax(a)           over the entries of each row                        [..., H, Z]

A number a row reaches its entries, and is summed from them, by the first two with keys that are one. Everything is
in float32, or float64 where that came in, and takes memory in O(Z).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import philox
from .csr import Tables, lines_of
from .shapes import Shape, broadcast, whole

Maybe = Tensor | None
Group = Sequence[Maybe]
Grads = list[Maybe]
Product = Callable[[Any, Any], Tensor]


class Entries(ABC):
    """One pattern, or one for each head or example."""

    def __init__(self, tables: Sequence[Maybe]) -> None:
        self.tables = Tables(*tables)  # type: ignore[arg-type]

    @abstractmethod
    def between(self, q: Tensor, k: Tensor) -> Tensor: ...

    @abstractmethod
    def to_queries(self, values: Tensor, v: Tensor) -> Tensor: ...

    @abstractmethod
    def to_keys(self, values: Tensor, q: Tensor, G: int) -> Tensor: ...

    @abstractmethod
    def softmax(self, values: Tensor) -> Tensor: ...

    def _ones(self, like: Tensor) -> Tensor:
        return like.new_ones(self.tables.shape[1], 1, 1)

    def spread(self, row: Tensor) -> Tensor:
        """``[..., H, M]`` to the entries."""
        return self.between(row.mT.unsqueeze(-1), self._ones(row))

    def total(self, values: Tensor) -> Tensor:
        """The sum of each row, ``[..., H, M]``."""
        return self.to_queries(values, self._ones(values)).squeeze(-1).mT

    def kept(self, key: Tensor, p: float, H: int, dtype: torch.dtype) -> Tensor:
        """D: 1 / (1 − p), or 0 where a weight is dropped."""
        rows = lines_of(self.tables.row_ends, self.tables.columns.shape[-1])
        keep = philox.keep_at(key, p, torch.arange(H, device=key.device), rows, self.tables.columns.long())
        return keep.to(dtype) / (1 - philox.threshold(p) / 65536)


def flat(t: Tensor, rank: int, batch: Shape) -> Tensor:
    """A tensor with one batch dim: of size 1 where it has none of its own, else of all of ``batch``."""
    own, rest = t.shape[: t.dim() - rank], t.shape[t.dim() - rank :]
    if all(size == 1 for size in own):
        return t.reshape(1, *rest)
    return t.expand(*batch, *rest).reshape(math.prod(batch), *rest)


def batched(*pairs: tuple[Maybe, int]) -> tuple[Shape, list[Any]]:
    """The common batch of tensors of given ranks, and each of them flat; what is absent stays so."""
    batch = broadcast(tuple(t.shape[: t.dim() - rank]) for t, rank in pairs if t is not None)
    return batch, [None if t is None else flat(t, rank, batch) for t, rank in pairs]


def fit(grads: Sequence[Maybe], x: Group, needs: Sequence[bool]) -> Grads:
    """Each gradient in the shape and dtype of its operand; none, where all it depends on is absent, is zero."""
    return [
        None
        if not need or t is None
        else torch.zeros_like(t, memory_format=torch.contiguous_format)
        if g is None
        else whole(g, t.shape).sum_to_size(t.shape).to(t.dtype).contiguous()
        for g, t, need in zip(grads, x, needs, strict=True)
    ]


def add(*terms: Maybe) -> Any:
    """The sum of the terms that are there; ``None`` if none is."""
    present = [t for t in terms if t is not None]
    return sum(present[1:], present[0]) if present else None


Make = Callable[[Sequence[Maybe]], Entries]


class Bilinear:
    """The family of y = f(a, b), linear in each, given f and its pullbacks to a (of dy, b) and to b (of dy, a)."""

    def __init__(self, products: Callable[[Group, Group], tuple[Product, Product, Product]]) -> None:
        """``products(x, c)`` makes the three for one call."""
        self.products = products

    def forward(self, x: Group, c: Group) -> tuple[Tensor]:
        return self._outward(x, c, x)

    def jvp(self, x: Group, c: Group, y: Group, tx: Group) -> tuple[Tensor]:
        return self._outward(x, c, (tx[0], x[1]), (x[0], tx[1]), like=y[0])

    def jvp2(self, x: Group, c: Group, y: Group, uy: Group, wy: Group, ux: Group, wx: Group) -> tuple[Tensor]:
        return self._outward(x, c, (ux[0], wx[1]), (wx[0], ux[1]), like=y[0])

    def backward(self, x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool]) -> Grads:
        return self._inward(x, c, needs, (dy[0], x))

    def hvp(
        self, x: Group, c: Group, y: Group, ty: Group, dy: Group, tx: Group, tdy: Group, needs: Sequence[bool]
    ) -> Grads:
        return self._inward(x, c, needs, (tdy[0], x), (dy[0], tx))

    def _outward(self, x: Group, c: Group, *pairs: Group, like: Maybe = None) -> tuple[Tensor]:
        f, dtype = self.products(x, c)[0], x[0].dtype  # type: ignore[union-attr]
        found = add(*(f(a, b) for a, b in pairs if a is not None and b is not None))
        if like is not None:
            found = torch.zeros_like(like) if found is None else whole(found, like.shape)
        return (found.to(dtype).contiguous(),)

    def _inward(self, x: Group, c: Group, needs: Sequence[bool], *pairs: tuple[Maybe, Group]) -> Grads:
        _, to_a, to_b = self.products(x, c)
        given = [(dy, a, b) for dy, (a, b) in pairs if dy is not None]
        da = add(*(to_a(dy, b) for dy, _, b in given if b is not None)) if needs[0] else None
        db = add(*(to_b(dy, a) for dy, a, _ in given if a is not None)) if needs[1] else None
        return fit((da, db), x, needs)
