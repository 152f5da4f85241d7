"""From tensors to launches: batches as strides, tiles by head size, and the second launch that cleans."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ...._core.kinds import wide
from ...._core.philox import grown, threshold
from ...._core.shapes import broadcast
from .._target import precision
from .._tile import ABSENT, View
from .config import tiles
from .logits import Numbers, Operands, Outputs, Shape, Size
from .walk import ALL, Lists, Tiles

Maybe = Tensor | None
Group = Sequence[Maybe]

RANKS = {"x": (3, 3, 3, 3, 1), "c": (1, 1, 1, 3, 3, 3, 3, 3, 1, 3, 3, 1), "y": (3, 2)}
"""Dims that are not batch: of q k v dense slopes, of lo hi key and a layout's tables, of out lse."""


class Launch:
    """One call: its operands as views, and how its kernels are launched."""

    def __init__(
        self,
        x: Group,
        c: Group,
        p: float,
        scale: float,
        block: float,
        tx: Sequence[Group] = (),
        ys: Sequence[Group] = (),
    ) -> None:
        """``tx``: tangents of x; ``ys``: outputs, their cotangents and tangents."""
        groups = [("x", x), ("c", c), *(("x", t) for t in tx), *(("y", y) for y in ys)]
        self.batch = broadcast(
            tuple(t.shape[: t.dim() - rank])
            for row, group in groups
            for t, rank in zip(group, RANKS[row], strict=False)
            if t is not None
        )
        q, k, v = x[:3]
        assert q is not None
        assert k is not None
        assert v is not None
        self.like, self.block = q, int(block)
        self.masked = self.block > 0 or any(t is not None for t in (x[3], c[0], c[1]))
        (M, H, K), (N, G), V = q.shape[-3:], k.shape[-3:-1], v.shape[-1]
        self.x = Operands(*self.operands(x), *self.constants(c))
        self.size = Size(M, N, H, H // G, math.prod(self.batch), self.batch[-1] if self.batch else 1)
        drop = 0 if c[2] is None else threshold(p)
        self.numbers = Numbers(float(scale), drop, grown(p) if drop else 1.0)
        self.widths = {"K": K, "V": V}
        self.rich = any(t is not None for t in (*x[3:], c[2]))

    # Tensors as views.

    def view(self, t: Maybe, rank: int, dims: str) -> View:
        """A tensor with its dims behind the batch named: h a head, r a row, c a column, f features side by side."""
        if t is None:
            return ABSENT
        if dims[-1] == "f" and t.stride(-1) != 1:
            t = t.contiguous()
        whole = t.expand(*self.batch, *t.shape[t.dim() - rank :])
        if len(self.batch) > 2:
            whole = whole.flatten(0, len(self.batch) - 2)
        steps = [0] * (2 + rank - whole.dim()) + [
            0 if size == 1 else step for size, step in zip(whole.shape, whole.stride(), strict=True)
        ]
        data = whole.view(torch.uint8) if t.dtype == torch.bool else whole
        step = dict(zip("oi" + dims, steps, strict=True))
        return View(data, step["o"], step["i"], step.get("h", 0), step.get("r", 0), step.get("c", 0))

    def rows(self, t: Maybe) -> View:
        """``[..., M, H, F]`` and its like."""
        return self.view(t, 3, "rhf")

    def row(self, t: Maybe) -> View:
        """``[..., H, M]``."""
        return self.view(t, 2, "hr")

    def constants(self, c: Group) -> tuple[View, View, View, Tiles]:
        """The bounds, the key and the layout."""
        return self.view(c[0], 1, "r"), self.view(c[1], 1, "r"), self.view(c[2], 1, "c"), self.layout(c[3:])

    def layout(self, tables: Group) -> Tiles:
        """Blocks, index and words of bits, index, counts and order of rows and of columns; or nothing."""
        if not self.block:
            return ALL
        blocks, given = tables[0], zip(tables, RANKS["c"][3:], strict=True)
        assert blocks is not None
        live, places, words, *lists = (self.view(t, rank, "hrc"[-rank:]) for t, rank in given)
        rows, columns = Lists._make(lists[:3]), Lists._make(lists[3:])
        return Tiles(tl.constexpr(self.block), blocks.shape[-3], live, places, words, rows, columns)

    def operands(self, x: Group) -> tuple[View, View, View, View, View]:
        """x, or a tangent of it."""
        q, k, v = map(self.rows, x[:3])
        return q, k, v, self.view(x[3], 3, "hrc"), self.view(x[4], 1, "h")

    def moves(self, tx: Group) -> Operands:
        """A tangent of x."""
        return Operands(*self.operands(tx), ABSENT, ABSENT, ABSENT, ALL)

    def pair(self, y: Group) -> Outputs:
        """Outputs, their tangents or cotangents."""
        return Outputs(self.rows(y[0]), self.row(y[1]))

    def new(self, *dims: int, dtype: torch.dtype | None = None) -> Tensor:
        """A result, over the whole batch."""
        return self.like.new_empty(*self.batch, *dims, dtype=dtype)

    def outputs(self) -> tuple[Tensor, Tensor]:
        """Where out and lse, or their tangents, are written."""
        M, _, H = self.size[:3]
        return self.new(M, H, self.widths["V"]), self.new(H, M, dtype=wide(self.like.dtype))

    def gradient(self, t: Tensor) -> Tensor:
        """Where the gradient of an operand is written: in its dtype, unless examples are still to be summed."""
        shape = (*self.batch, *t.shape[-3:])
        return self.like.new_empty(shape, dtype=t.dtype if math.prod(shape) == t.numel() else torch.float32)

    # Launches.

    def tiles(self, kernel: str, makes: str = "") -> dict[str, int]:
        """The constants of a kernel, of which a program makes a chunk of K or of V features, or of both, or neither."""
        K, V = map(padded, self.widths.values())
        found = tiles(kernel, K, V, self.like.dtype, self.rich, self.block)
        chunks = {f: -(-width // found[f"B{f}"]) for f, width in self.widths.items()}
        return {**self.widths, **found, "CHUNKS": max((chunks[f] for f in makes), default=1)}

    def over(self, side: str, shape: Mapping[str, int]) -> int:
        """How many programs make the tiles of queries, M, or of keys, N, of all examples and heads."""
        length, heads = (self.size.M, self.size.H) if side == "M" else (self.size.N, self.size.H // self.size.R)
        tile = shape[f"B{side}"]
        line = self.block or tile
        return -(-length // line) * -(-line // tile) * heads * self.size.examples * shape["CHUNKS"]

    def sides(self, queries: str | None, keys: str | None) -> tuple[int, dict[str, Any]]:
        """How many programs a launch has that makes queries and keys, by the names of what makes them, and its
        constants: of both sides the more warps and the fewer stages."""
        found = {"M": queries and self.tiles(queries, "K"), "N": keys and self.tiles(keys, "KV")}
        made = {side: shape for side, shape in found.items() if shape}
        count = {side: self.over(side, shape) for side, shape in made.items()}
        shapes = {side: Shape(*(tl.constexpr(shape[name]) for name in Shape._fields)) for side, shape in made.items()}
        return sum(count.values()), {
            **self.widths,
            "columns": count.get("N", 0),
            "of_queries": shapes.get("M"),
            "of_keys": shapes.get("N"),
            "num_warps": max(shape["num_warps"] for shape in made.values()),
            "num_stages": min(shape["num_stages"] for shape in made.values()),
        }

    def run(self, kernel: Any, programs: int, shape: Mapping[str, Any], *args: Any, strict: bool | None = None) -> None:
        with torch.cuda.device_of(self.like):
            constants = dict(shape) | ({} if strict is None else {"STRICT": strict})
            kernel[(programs,)](*args, self.size, self.numbers, **constants, PRECISION=precision())

    def clean(self, kernel: Any, programs: int, shape: Mapping[str, Any], *args: Any) -> None:
        """Behind a mask, programs whose results are not finite run again."""
        leaked = self.like.new_empty(programs, dtype=torch.int8) if self.masked else None
        for strict in (False, True)[: 1 + self.masked]:
            self.run(kernel, programs, shape, *args, leaked, strict=strict)


def padded(features: int) -> int:
    """Tiles are powers of two, and products at least 16 wide."""
    return max(16, 1 << (features - 1).bit_length())
