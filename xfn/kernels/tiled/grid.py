"""How the tiled attention walks over queries and keys.

A block is some queries of every head against the keys that at least one of them sees. The R query heads that
share a key head lie under one another, so grouped queries make taller blocks and no key is repeated:

    query side  [..., M, H, F]  ->  rows of a block   [..., G, R·m, F]
                [..., H, M]     ->                    [..., G, R·m, 1]
    key side    [..., N, G, F]  ->  packed, once      [..., G, N, F]
    logits                          [..., G, R·m, n], or [..., G, R, m, n] where head and query count

Everything is computed in float32, or float64 where that came in.
"""

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..._core import philox
from ..._core.kinds import broken, finite, wide
from ..._core.shapes import broadcast, whole
from ..._core.tables import expand

Maybe = Tensor | None
Group = Sequence[Maybe]

RANKS = {"x": (3, 3, 3, 3, 1), "c": (1, 1, 1, 3, 3, 3), "y": (3, 2)}
"""Dims that are not batch: of q k v dense slopes, of lo hi key and a layout's tiles, of out lse."""
ELEMENTS = 1 << 20
"""Logits in a block, over all examples and heads: 4 MiB in float32."""
ROWS = 16
"""The fewest queries in a block, however many examples there are."""
TALL = 64
"""The fewest where tiles tell which keys a block has."""


class Grid:
    """One call: operands packed for matmuls, the blocks, and how results leave them."""

    def __init__(
        self,
        x: Group,
        c: Group,
        p: float,
        scale: float,
        tx: Sequence[Group] = (),
        ys: Sequence[Group] = (),
        block: float = 0.0,
    ) -> None:
        """``tx``: tangents of x; ``ys``: outputs, their cotangents and tangents; ``block``: of a layout in c."""
        groups = [("x", x), ("c", c[:6]), *(("x", t) for t in tx), *(("y", y) for y in ys)]
        q, k, v, self.dense, self.slopes = x
        self.lo, self.hi, self.key, *tiles = c[:6]
        self.tiles, self.block = tiles, int(block)
        assert q is not None
        assert k is not None
        assert v is not None
        self.batch = broadcast(
            tuple(t.shape[: t.dim() - rank])
            for row, group in groups
            for t, rank in zip(group, RANKS[row], strict=row != "c")
            if t is not None
        )
        self.p, self.scale, self.dtype, self.device = p, scale, wide(q.dtype), q.device
        (self.M, self.H), (self.N, self.G) = q.shape[-3:-1], k.shape[-3:-1]
        self.masked = any(t is not None for t in (self.lo, self.hi, self.dense, *self.tiles))
        self.unsound: Maybe = None
        self.spoilt: Maybe = None
        self.strict = self.masked and self._find_broken([x, *tx], ys)
        self.q, self.k, self.v = q, self.pack(k), self.pack(v)

    def _find_broken(self, xs: Sequence[Group], ys: Sequence[Group]) -> bool:
        """Whether anything is not finite, and so where: keys ``[..., G, N, 1]`` and queries ``[..., H, M]``."""
        queries = [t for group in (*xs, *ys) if (t := group[0]) is not None]
        keys = [t for group in xs for t in group[1:3] if t is not None]
        moves = [t for group in (*(g[3:] for g in xs[1:]), *(g[1:] for g in ys[1:])) for t in group if t is not None]
        if finite(*queries, *keys, *moves):
            return False
        self.unsound, self.spoilt = broken(*keys).mT.unsqueeze(-1), broken(*queries).mT
        return True

    def pack(self, t: Maybe) -> Any:
        """A key-side tensor as ``[..., G, N, F]``; a key that is not sound is zero, so that it touches no sum."""
        if t is None:
            return None
        packed = t.transpose(-2, -3).to(self.dtype).contiguous()
        return packed if self.unsound is None else torch.where(self.unsound, 0, packed)

    def blocks(self, lse: Tensor | None = None) -> Iterator["Block"]:
        """Blocks that cover the queries, each with the keys between its least lo and its greatest hi."""
        examples = math.prod(self.batch) * self.H
        if not examples * self.M:
            return
        count = min(self.M, max(ROWS, ELEMENTS // (examples * max(self.N, 1))))
        count = max(self.block, TALL) if self.block else count
        lows, highs = self._bounds(self.lo, count, 0), self._bounds(self.hi, count, self.N)
        live = self._live(count) if self.block else [None] * len(lows)
        for i, ((lo, last_lo), (first_hi, hi), tiles) in enumerate(zip(lows, highs, live, strict=True)):
            rows = slice(i * count, min((i + 1) * count, self.M))
            if tiles is not None:
                tiles = tiles[(tiles * self.block < hi) & ((tiles + 1) * self.block > lo)]
            yield Block(self, rows, slice(lo, max(lo, hi)), last_lo > lo or first_hi < hi, lse, tiles)

    def _live(self, count: int) -> Sequence[Tensor]:
        """The tiles that are live anywhere in each ``count`` queries, for any head of any example."""
        blocks, every = self.tiles[0], count // self.block
        assert blocks is not None
        some = blocks.flatten(0, -3).any(0)
        live = torch.stack([part.any(0) for part in some.split(every)])
        tiles: Sequence[Tensor] = live.nonzero()[:, 1].split(live.sum(1).tolist())
        return tiles

    def _bounds(self, bound: Tensor | None, count: int, free: int) -> list[tuple[int, int]]:
        """The least and the greatest bound of each block."""
        if bound is None:
            return [(free, free)] * -(-self.M // count)
        flat: list[int] = torch.stack([end for part in bound.split(count, -1) for end in part.aminmax()]).tolist()
        return list(zip(flat[::2], flat[1::2], strict=True))

    def outputs(self) -> tuple[Tensor, Tensor]:
        """Where out ``[..., M, H, V]`` and lse ``[..., H, M]``, or their tangents, are written."""
        out = self.q.new_empty(*self.batch, self.M, self.H, self.v.shape[-1])
        return out, self.q.new_empty(*self.batch, self.H, self.M, dtype=self.dtype)

    def tangent(self, tx: Group) -> Group:
        """A tangent of x with its keys packed."""
        tq, tk, tv, dense, slopes = tx
        return tq, self.pack(tk), self.pack(tv), dense, slopes


class Block:
    """Some rows against the keys that at least one of them sees."""

    def __init__(
        self, grid: Grid, rows: slice, keys: slice, ragged: bool, lse: Tensor | None, tiles: Tensor | None
    ) -> None:
        """``tiles``: whose keys take part, instead of ``keys``."""
        self.grid, self.at, self.tiles = grid, rows, tiles
        self.columns = torch.arange(keys.start, keys.stop, device=grid.device) if tiles is None else self._within(tiles)
        self.span: slice | Tensor = keys if tiles is None else self.columns
        self.heads, self.m, self.n = (grid.G, grid.H // grid.G), rows.stop - rows.start, len(self.columns)
        self.mute: Maybe = None
        blind = self.row(lse) == -torch.inf if grid.masked and lse is not None else None
        self.blind = blind if blind is not None and blind.any() else None
        self.spoilt = self.row(grid.spoilt)
        mute = [t for t in (self.blind, self.spoilt) if t is not None]
        self.mute = reduce(torch.logical_or, mute) if mute else None
        self.q, self.k, self.v = self.rows(grid.q, grid.scale), self.keys(grid.k), self.keys(grid.v)
        self.hidden, self.kept = self._hidden(ragged), self._kept()

    # Operands as this block sees them.

    def rows(self, t: Maybe, scale: float = 1.0) -> Any:
        """``[..., M, H, F]`` as ``[..., G, R·m, F]``; what is blind or spoilt is zero and touches no sum."""
        if t is None:
            return None
        wide = t[..., self.at, :, :].to(self.grid.dtype)
        part = torch.unflatten(wide, -2, self.heads).movedim(-4, -2).flatten(-3, -2)
        part = part if self.mute is None else torch.where(self.mute, 0, part)
        return part if scale == 1.0 else part * scale

    def row(self, t: Maybe) -> Any:
        """``[..., H, M]`` as ``[..., G, R·m, 1]``; zero where ``rows`` are."""
        if t is None:
            return None
        part = torch.unflatten(t[..., self.at], -2, self.heads).flatten(-2).unsqueeze(-1)
        return part if self.mute is None else torch.where(self.mute, 0, part)

    def keys(self, packed: Maybe) -> Any:
        """``[..., G, N, F]`` as ``[..., G, n, F]``."""
        return None if packed is None else packed[..., self.span, :]

    def square(self, t: Tensor) -> Tensor:
        """``[..., H|1, M|1, N|1]`` as ``[..., G|1, R|1, m|1, n|1]``."""
        t = t if t.shape[-2] == 1 else t[..., self.at, :]
        t = t if t.shape[-1] == 1 else t[..., self.span]
        return t.unsqueeze(-4) if t.shape[-3] == 1 else torch.unflatten(t, -3, self.heads)

    def split(self, logits: Tensor) -> Tensor:
        """``[..., G, R·m, n]`` as ``[..., G, R, m, n]``."""
        return torch.unflatten(logits, -2, (self.heads[1], self.m))

    def distance(self) -> Tensor:
        m = torch.arange(self.at.start, self.at.stop, device=self.grid.device)
        return (m[:, None] - self.columns).abs().to(self.grid.dtype)

    def _within(self, tiles: Tensor, of: int = 1) -> Tensor:
        """The keys of tiles, or the groups of ``of`` keys."""
        some = self.grid.block // of
        found = (tiles[:, None] * some + torch.arange(some, device=tiles.device)).flatten()
        return found[found * of < self.grid.N]

    def _dead(self, tiles: Tensor) -> Tensor:
        """Where the layout has nothing: ``[..., G|1, R|1, m, n]``."""
        blocks, index, words = self.grid.tiles
        size = self.grid.block
        first = self.at.start // size
        blocks, index = (
            None if t is None else t[..., first : first + -(-self.m // size), :][..., tiles] for t in (blocks, index)
        )
        seen = expand(blocks, index, words, size, self.m, self.n)  # type: ignore[arg-type]
        return ~(seen.unsqueeze(-4) if seen.shape[-3] == 1 else torch.unflatten(seen, -3, self.heads))

    def _hidden(self, ragged: bool) -> Tensor | None:
        grid = self.grid
        hidden = None if self.tiles is None else self._dead(self.tiles)
        if ragged:
            n = self.columns
            sides = []
            if grid.lo is not None:
                sides.append(n < grid.lo[..., self.at, None])
            if grid.hi is not None:
                sides.append(n >= grid.hi[..., self.at, None])
            outside = (sides[0] if len(sides) == 1 else sides[0] | sides[1])[..., None, None, :, :]
            hidden = outside if hidden is None else hidden | outside
        if grid.dense is not None and (grid.dense.dtype == torch.bool or grid.strict):
            dense = self.square(grid.dense)
            dark = ~dense if dense.dtype == torch.bool else dense == -torch.inf
            hidden = dark if hidden is None else hidden | dark
        return hidden

    def _kept(self) -> Tensor | None:
        grid = self.grid
        if grid.key is None:
            return None
        rows = torch.arange(self.at.start, self.at.stop, device=grid.device)
        heads = torch.arange(grid.H, device=grid.device)
        if self.tiles is None:
            ends = (self.span.start, self.span.stop)  # type: ignore[union-attr]
            kept = philox.keep(grid.key, grid.p, heads, rows, *ends)
        else:
            groups = self._within(self.tiles, philox.LANES)
            kept = philox.keep_groups(grid.key, grid.p, heads, rows, groups)[..., : self.n]
        return torch.unflatten(kept, -3, self.heads).flatten(-3, -2).to(grid.dtype) / (
            1 - philox.threshold(grid.p) / 65536
        )

    # The formulas' letters.

    def logits(self) -> Tensor:
        """s, with −∞ where hidden and NaN where a key that is not sound, or a query that is spoilt, is seen."""
        grid = self.grid
        s: Tensor = self.q @ self.k.mT
        if grid.unsound is not None:
            s = torch.where(grid.unsound[..., self.span, :].mT | self.spoilt, torch.nan, s)
        if grid.dense is None and grid.slopes is None and self.hidden is None:
            return s
        s = self.split(s)
        if grid.slopes is not None:
            s = s - self.per_head(grid.slopes) * self.distance()
        if grid.dense is not None and grid.dense.dtype != torch.bool:
            s = s + self.square(grid.dense).to(grid.dtype)
        if self.hidden is not None:
            s = torch.where(self.hidden, -torch.inf, s)
        return s.flatten(-3, -2)

    def per_head(self, t: Tensor) -> Tensor:
        """``[..., H]`` as ``[..., G, R, 1, 1]``."""
        return torch.unflatten(t.to(self.grid.dtype), -1, self.heads)[..., None, None]

    def weights(self) -> Tensor:
        """P = softmax(s), 0 where hidden."""
        P = self.hide(torch.softmax(self.logits(), -1))
        return P if self.blind is None else torch.where(self.blind, 0, P)

    def hide(self, t: Tensor) -> Tensor:
        """t, 0 where hidden: a product with P is that already where all numbers are finite."""
        if self.hidden is None or not self.grid.strict:
            return t
        return torch.where(self.hidden, 0, self.split(t)).flatten(-3, -2)

    def drop(self, t: Any) -> Any:
        """t ∘ D."""
        return t if t is None or self.kept is None else t * self.kept

    def along(self, tangent: Group) -> Tensor:
        """ṡ: how the logits move along a tangent from ``Grid.tangent``."""
        tq, tk, _, dense, slopes = tangent
        parts = []
        if tq is not None:
            parts.append(self.split(self.rows(tq, self.grid.scale) @ self.k.mT))
        if tk is not None:
            parts.append(self.split(self.q @ self.keys(tk).mT))
        if dense is not None:
            move = self.square(dense).to(self.grid.dtype)
            strict = self.hidden is not None and self.grid.strict
            parts.append(torch.where(self.hidden, 0, move) if strict else move)  # type: ignore[arg-type]
        if slopes is not None:
            parts.append(self.per_head(slopes) * -self.distance())
        total: Tensor | None = add(*parts)
        if total is None:
            return torch.zeros((), dtype=self.grid.dtype, device=self.grid.device)
        return total.expand(*total.shape[:-4], *self.heads, self.m, self.n).flatten(-3, -2)

    # Results.

    def unrow(self, rows: Tensor) -> Tensor:
        """Rows ``[..., G, R·m, F]`` as ``[..., m, H, F]``."""
        return self.split(rows).movedim(-2, -4).flatten(-3, -2)

    def write(self, rows: Tensor, into: Tensor) -> None:
        """Rows to their place in ``[..., M, H, F]``."""
        into[..., self.at, :, :] = self.unrow(rows)

    def write_row(self, row: Tensor, into: Tensor) -> None:
        """``[..., G, R·m, 1]`` to its place in ``[..., H, M]``."""
        into[..., self.at] = self.split(row).flatten(-4, -3).squeeze(-1)


class Gradients:
    """Sums over blocks: the gradients of x that are needed, each in the shape of its operand."""

    def __init__(self, grid: Grid, x: Group, needs: Sequence[bool]) -> None:
        self.grid, self.x = grid, x
        self.sums: list[Maybe] = [None] * len(x)
        for i, (t, need) in enumerate(zip(x, needs, strict=True)):
            if need and t is not None:
                whole = i == 0 or (i == 3 and t.shape[-2] != 1)  # a block gives these rows all they get
                shape = t.transpose(-2, -3).shape if i in (1, 2) else t.shape
                self.sums[i] = torch.zeros(shape, dtype=t.dtype if whole else grid.dtype, device=grid.device)

    def add_rows(self, b: Block, *pairs: tuple[Maybe, Maybe]) -> None:
        """To q, products of logits and keys: ``[..., G, R·m, K]``."""
        if (total := self.sums[0]) is not None:
            part = total[..., b.at, :, :]
            part.copy_(_fit(b.unrow(mul(*pairs)) * self.grid.scale, part))

    def add_keys(self, b: Block, i: int, *pairs: tuple[Maybe, Maybe]) -> None:
        """To k (i = 1) or v (i = 2), products of logits and rows: ``[..., G, n, F]``."""
        if (total := self.sums[i]) is not None and (found := mul(*pairs)) is not None:
            part = total[..., b.span, :]
            part += _fit(found, part)
            if b.tiles is not None:  # a copy of what lies apart
                total[..., b.span, :] = part

    def add_logits(self, b: Block, dS: Tensor) -> None:
        """To dense and slopes: ``[..., G, R·m, n]``."""
        _, _, _, dense, slopes = self.sums
        if dense is not None:
            part = dense if dense.shape[-2] == 1 else dense[..., b.at, :]
            own = part if part.shape[-1] == 1 else part[..., b.span]
            own += _fit(b.split(dS).flatten(-4, -3), own)
            if b.tiles is not None and part.shape[-1] != 1:
                part[..., b.span] = own
        if slopes is not None:
            slopes -= _fit((b.split(dS) * b.distance()).sum((-1, -2)).flatten(-2), slopes)

    def result(self) -> list[Maybe]:
        found = [t.transpose(-2, -3) if t is not None and i in (1, 2) else t for i, t in enumerate(self.sums)]
        pairs = zip(found, self.x, strict=True)
        return [None if t is None or x is None else t.to(x.dtype).contiguous() for t, x in pairs]


def _fit(value: Tensor, like: Tensor) -> Tensor:
    """``value`` in the shape of ``like``: summed over what that broadcasts, repeated for examples that share it."""
    return whole(value, like.shape).sum_to_size(like.shape)


def mul(*pairs: tuple[Maybe, Maybe]) -> Any:
    """The sum of a @ b over the pairs that are whole; ``None`` if none is."""
    return add(*(a @ b for a, b in pairs if a is not None and b is not None))


def add(*terms: Maybe) -> Any:
    """The sum of the terms that are there; ``None`` if none is."""
    present = [t for t in terms if t is not None]
    return sum(present[1:], present[0]) if present else None


def flip(t: Maybe) -> Maybe:
    """The transpose, if there is something to transpose."""
    return None if t is None else t.mT
