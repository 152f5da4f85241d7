"""The families of softmax and of attention over a pattern's entries.

With P = softmax(s) over a row, D the dropout factors and ⟨z⟩ = Σ P ∘ z over a row, the formulas are those at the
head of kernels/tiled/attention.py, on vectors ``[..., H, Z]`` in place of matrices.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .entries import Bilinear, Entries, Grads, Group, Make, Maybe, add, fit
from .kinds import wide
from .shapes import broadcast


def sddmm(make: Make) -> Bilinear:
    """The family of values = q kᵀ at the entries."""

    def products(x: Group, c: Group):  # type: ignore[no-untyped-def]
        entries, G = make(c), x[1].shape[-2]  # type: ignore[union-attr]
        return entries.between, entries.to_queries, lambda dy, q: entries.to_keys(dy, q, G)

    return Bilinear(products)


def spmm(make: Make) -> Bilinear:
    """The family of out = values v."""

    def products(x: Group, c: Group):  # type: ignore[no-untyped-def]
        entries, G = make(c), x[1].shape[-2]  # type: ignore[union-attr]
        return entries.to_queries, entries.between, lambda dy, values: entries.to_keys(values, dy, G)

    return Bilinear(products)


class Softmax:
    """y = softmax(values) over the entries of each row."""

    def __init__(self, make: Make) -> None:
        self.make = make

    def _at(self, x: Group, c: Group) -> "Rows":
        (values,), (row_ends, columns) = x, c
        assert values is not None
        assert row_ends is not None
        assert columns is not None
        one = self.make((row_ends, torch.zeros_like(columns), row_ends[..., -1:], columns, columns))
        return Rows(one, one.softmax(values.to(wide(values.dtype))))

    def forward(self, x: Group, c: Group) -> tuple[Tensor]:
        return (self._at(x, c).P.to(x[0].dtype),)  # type: ignore[union-attr]

    def backward(self, x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool]) -> Grads:
        at = self._at(x, c)
        return fit([at.P * at.centred(at.wide(dy[0]))], x, needs)

    def jvp(self, x: Group, c: Group, y: Group, tx: Group) -> tuple[Tensor]:
        at = self._at(x, c)
        return ((at.P * at.centred(at.wide(tx[0]))).to(x[0].dtype),)  # type: ignore[union-attr]

    def hvp(
        self, x: Group, c: Group, y: Group, ty: Group, dy: Group, tx: Group, tdy: Group, needs: Sequence[bool]
    ) -> Grads:
        at = self._at(x, c)
        return fit([at.bent(at.centred(at.wide(tx[0])), at.wide(dy[0]), at.wide(tdy[0]))[1]], x, needs)

    def jvp2(self, x: Group, c: Group, y: Group, uy: Group, wy: Group, ux: Group, wx: Group) -> tuple[Tensor]:
        at = self._at(x, c)
        both = at.centred(at.wide(ux[0])) * at.centred(at.wide(wx[0]))
        return ((at.P * at.centred(both)).to(x[0].dtype),)  # type: ignore[union-attr]


class Rows:
    """Weights P, and means over their rows."""

    def __init__(self, entries: Entries, P: Tensor) -> None:
        self.entries, self.P = entries, P

    def wide(self, t: Maybe) -> Maybe:
        return None if t is None else t.to(self.P.dtype)

    def mean(self, z: Tensor) -> Tensor:
        """⟨z⟩, ``[..., H, M]``."""
        return self.entries.total(self.P * z)

    def centred(self, z: Maybe, shift: Maybe = None) -> Tensor:
        """z − ⟨z⟩ + shift, the shift a number a row; what is absent is zero."""
        parts = [] if z is None else [z - self.entries.spread(self.mean(z))]
        found: Maybe = add(*parts, None if shift is None else self.entries.spread(shift.to(self.P.dtype)))
        return torch.zeros_like(self.P) if found is None else found

    def bent(
        self, turn: Tensor, X: Maybe, tX: Maybe, shift: Maybe = None, tshift: Maybe = None
    ) -> tuple[Tensor, Tensor]:
        """dS and its derivative along the tangent whose centred logits are ``turn``."""
        zero = torch.zeros_like(self.P)
        X, tX = (zero if t is None else t for t in (X, tX))
        tX = add(tX - self.entries.spread(self.mean(turn * X + tX)), self.centred(None, tshift))
        X = self.centred(X, shift)
        return self.P * X, self.P * (turn * X + tX)


class Attention:
    """out = (softmax(scale · q kᵀ) ∘ D) v at the entries; ``forward`` is each language's own."""

    def __init__(self, make: Make) -> None:
        self.make = make

    def at(self, x: Group, c: Group, p: float, scale: float) -> "Point":
        return Point(self.make(c[:5]), x, c[5], p, scale)

    def backward(
        self, x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float, scale: float
    ) -> Grads:
        at = self.at(x, c, p, scale)
        dS = at.P * at.centred(at.drop(at.reach(dy[0], at.v)), at.wide(dy[1]))
        return at.fit(needs, [(dS, at.k)], [(dS, at.q)], [(at.drop(at.P), dy[0])])

    def jvp(self, x: Group, c: Group, y: Group, tx: Group, *, p: float, scale: float) -> tuple[Tensor, Tensor]:
        at = self.at(x, c, p, scale)
        s = at.along(tx)
        mean = at.mean(s)
        turn = s - at.entries.spread(mean)
        return at.whole((y,), at.out((at.P * turn, at.v), (at.P, tx[2])), mean)

    def hvp(
        self, x: Group, c: Group, y: Group, ty: Group, dy: Group, tx: Group, tdy: Group, needs: Sequence[bool],
        *, p: float, scale: float,
    ) -> Grads:  # fmt: skip
        at = self.at(x, c, p, scale)
        turn = at.centred(at.along(tx))
        X = at.drop(at.reach(dy[0], at.v))
        tX = at.drop(add(at.reach(tdy[0], at.v), at.reach(dy[0], tx[2])))
        dS, tdS = at.bent(turn, X, tX, dy[1], tdy[1])
        weights = [(at.drop(at.P * turn), dy[0]), (at.drop(at.P), tdy[0])]
        return at.fit(needs, [(tdS, at.k), (dS, tx[1])], [(tdS, at.q), (dS, tx[0])], weights)

    def jvp2(
        self, x: Group, c: Group, y: Group, uy: Group, wy: Group, ux: Group, wx: Group, *, p: float, scale: float
    ) -> tuple[Tensor, Tensor]:
        at = self.at(x, c, p, scale)
        s, r = at.centred(at.along(ux)), at.centred(at.along(wx))
        bent = at.logits((ux[0], wx[1]), (wx[0], ux[1]))
        bent = s * r if bent is None else s * r + bent
        mean = at.mean(bent)
        turn = bent - at.entries.spread(mean)
        return at.whole((y, uy, wy), at.out((at.P * turn, at.v), (at.P * s, wx[2]), (at.P * r, ux[2])), mean)


class Point(Rows):
    """One call of attention."""

    def __init__(self, entries: Entries, x: Group, key: Maybe, p: float, scale: float) -> None:
        self.x, self.scale = x, scale
        self.q, self.k, self.v = x
        assert self.q is not None
        self.s = s = entries.between(self.q, self.k) * scale  # type: ignore[arg-type]
        super().__init__(entries, entries.softmax(s))
        self.D = None if key is None else entries.kept(key, p, self.q.shape[-2], s.dtype)

    def drop(self, z: Maybe) -> Maybe:
        return z if z is None or self.D is None else z * self.D

    def reach(self, q: Maybe, k: Maybe) -> Maybe:
        """q · k at the entries, where both are there."""
        return None if q is None or k is None else self.entries.between(q, k)

    def logits(self, *pairs: tuple[Maybe, Maybe]) -> Maybe:
        found: Maybe = add(*(self.reach(q, k) for q, k in pairs))
        return None if found is None else found * self.scale

    def along(self, tx: Group) -> Tensor:
        """ṡ: how the logits move along a tangent."""
        found = self.logits((tx[0], self.k), (self.q, tx[1]))
        return torch.zeros_like(self.P) if found is None else found

    def out(self, *pairs: tuple[Maybe, Maybe]) -> Tensor:
        """Σ (a ∘ D) v, in q's dtype."""
        found = add(*(self.entries.to_queries(self.drop(a), v) for a, v in pairs if v is not None))  # type: ignore[arg-type]
        return found.to(self.q.dtype)  # type: ignore[no-any-return, union-attr]

    @staticmethod
    def whole(ys: Sequence[Group], out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """Both with the batch that they and the outputs ``ys`` share."""
        batches = [tuple(t.shape[:-3]) for t in (out, *(y[0] for y in ys)) if t is not None]
        batch = broadcast((*batches, tuple(lse.shape[:-2])))
        return tuple(t.expand(*batch, *t.shape[t.dim() - r :]).contiguous() for t, r in ((out, 3), (lse, 2)))  # type: ignore[return-value]

    def fit(self, needs: Sequence[bool], dq: Sequence[Group], dk: Sequence[Group], dv: Sequence[Group]) -> Grads:
        """The gradients that are needed, from pairs of what is summed."""
        G = self.k.shape[-2]  # type: ignore[union-attr]

        def there(pairs: Sequence[Group]) -> list[tuple[Tensor, Tensor]]:
            return [(a, b) for a, b in pairs if a is not None and b is not None]

        q = [self.entries.to_queries(a, b) for a, b in there(dq)] if needs[0] else []
        k = [self.entries.to_keys(a, b, G) for a, b in there(dk)] if needs[1] else []
        v = [self.entries.to_keys(a, b, G) for a, b in there(dv)] if needs[2] else []
        scaled = [None if t is None else t * self.scale for t in (add(*q), add(*k))]
        return fit([*scaled, add(*v)], self.x, needs)
