"""The value: live tiles, the bits of partial ones, and the look-up tables, built with it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._core.errors import ShapeError
from .._core.kinds import check_tensors
from .._core.pytree import mapped, pytree, static
from .._core.tables import BLOCKS, Bits, Found, Lists, Tiling, expand, pack, unpack

Keep = Callable[[Tensor, Tensor, Tensor], Tensor]


@pytree
class Layout:
    """Which tiles of ``block`` queries by ``block`` keys there are, for all heads alike or head by head.

    Args:
        blocks: bool ``[M/block, N/block]`` or ``[H, M/block, N/block]``, True where a tile is live; rounded up, for the
            last row and column may be ragged.
        block: 8, 16, 32, 64 or 128.
        lengths: M and N; by default the tiles are whole.

    What else it holds follows from these: ``bits``, which :meth:`with_mask` and ``from_mask`` make, and ``rows`` and
    ``columns``, the look-up tables that kernels walk.

    Raises:
        ShapeError, TypeError, ValueError: blocks that are no boolean ``[H, M/block, N/block]``, another block.

    Example:
        >>> diagonal = Layout(torch.eye(4).bool(), 16)
        >>> diagonal, diagonal.density
        (Layout(M=64, N=64, block=16), 0.25)
    """

    blocks: Tensor
    block: int = static()
    lengths: tuple[int, int] = static(default=())
    bits: Bits | None = None
    rows: Lists | None = None
    columns: Lists | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.blocks, Tensor) or self.rows is not None:
            return  # a tree on its way through a transform, or a whole value
        blocks = check(self.blocks, self.block, self.lengths)
        lengths = self.lengths or (blocks.shape[-2] * self.block, blocks.shape[-1] * self.block)
        partial = None if self.bits is None else self.bits.index >= 0
        built = {
            "blocks": blocks,
            "lengths": lengths,
            "rows": Lists.of(blocks, partial),
            "columns": Lists.of(blocks.mT, None if partial is None else partial.mT),
        }
        for name, value in built.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        heads = f", H={self.heads}" if self.heads > 1 else ""
        return f"Layout(M={self.M}, N={self.N}, block={self.block}{heads}{', with bits' * (self.bits is not None)})"

    @property
    def M(self) -> int:
        return self.lengths[0]

    @property
    def N(self) -> int:
        return self.lengths[1]

    @property
    def heads(self) -> int:
        """How many have tiles of their own; 1: all share them."""
        return self.blocks.shape[-3]

    @property
    def tiling(self) -> Tiling:
        return Tiling(self.block, *self.lengths)

    @property
    def density(self) -> float:
        """The part of the tiles that are live."""
        return int(self.blocks.sum()) / max(1, self.blocks.numel())

    def __and__(self, other: "Layout") -> "Layout":
        return self._joined(other, union=False)

    def __or__(self, other: "Layout") -> "Layout":
        return self._joined(other, union=True)

    def __invert__(self) -> "Layout":
        if self.bits is None:
            return Layout(~self.blocks, self.block, self.lengths)
        partial = self.bits.index >= 0
        return Layout(~self.blocks | partial, self.block, self.lengths, Bits(self.bits.index, ~self.bits.words))

    def _joined(self, other: "Layout", *, union: bool) -> "Layout":
        if not isinstance(other, Layout):
            raise TypeError(f"a layout combines with a layout, not with {type(other).__name__}: write from_mask(mask)")
        if self.tiling != other.tiling or (self.heads != other.heads and 1 not in (self.heads, other.heads)):
            raise ShapeError(f"{self} and {other} do not combine: they differ in M, N, block or H")
        return self._of(self.tiling.join([self.blocks, other.blocks], [self.bits, other.bits], union=union))

    def _of(self, found: Found) -> "Layout":
        return Layout(found.blocks, self.block, self.lengths, found.bits)

    def transpose(self) -> "Layout":
        """Queries as keys, and keys as queries.

        Example:
            >>> Layout(torch.ones(1, 3).bool(), 8).transpose()
            Layout(M=24, N=8, block=8)
        """
        bits = self.bits and Bits(self.bits.index.mT, pack(unpack(self.bits.words, self.block).mT))
        return Layout(self.blocks.mT, self.block, (self.N, self.M), bits, self.columns, self.rows)

    def with_mask(self, keep: Keep) -> "Layout":
        """Only those coefficients of the live tiles that ``keep(head, m, n)`` keeps.

        It is called here and now, on the live tiles alone, and what it says is stored where a tile is kept in part.

        Args:
            keep: of three int64 tensors that broadcast, to a boolean one. A layout that all heads share has head 0
                alone; write ``layout.per_head(H).with_mask(keep)`` where heads differ.

        Raises:
            TypeError: what is not boolean.

        Example:
            >>> Layout(torch.ones(1, 1).bool(), 8, (2, 3)).with_mask(lambda h, m, n: n <= m).to_mask().int()
            tensor([[1, 0, 0],
                    [1, 1, 0]], dtype=torch.int32)
        """
        tiling = self.tiling

        def seen(at: Tensor) -> Tensor:
            h, m, n = tiling.places(at)
            kept = keep(h, m.clamp(max=self.M - 1), n.clamp(max=self.N - 1))
            if not isinstance(kept, Tensor) or kept.dtype != torch.bool:
                raise TypeError(
                    f"with_mask keeps where a boolean tensor is True, but got {getattr(kept, 'dtype', kept)}"
                )
            return kept.expand(len(at), self.block, self.block)

        made = self._of(tiling.settle(torch.zeros_like(self.blocks), self.blocks, seen))
        return made if self.bits is None else self & made

    def per_head(self, heads: int) -> "Layout":
        """The same tiles for each of so many heads, to be told apart.

        Raises:
            ShapeError: it is of several heads already.

        Example:
            >>> Layout(torch.ones(1, 1).bool(), 8).per_head(4)
            Layout(M=8, N=8, block=8, H=4)
        """
        if self.heads not in (1, heads):
            raise ShapeError(f"{self} has H={self.heads} already, and not H={heads}")
        bits = self.bits and Bits(self.bits.index.expand(heads, -1, -1), self.bits.words)
        return Layout(self.blocks.expand(heads, -1, -1), self.block, self.lengths, bits)

    def to_mask(self) -> Tensor:
        """True where a query may see a key: bool ``[M, N]``, or ``[H, M, N]`` where heads differ.

        Example:
            >>> Layout(torch.eye(2).bool(), 8, (9, 9)).to_mask()[:, -1].int()
            tensor([0, 0, 0, 0, 0, 0, 0, 0, 1], dtype=torch.int32)
        """
        index, words = (None, None) if self.bits is None else (self.bits.index, self.bits.words)
        mask = expand(self.blocks, index, words, self.block, self.M, self.N)
        return mask.squeeze(-3) if self.heads == 1 else mask

    def to(self, device: torch.device | str) -> "Layout":
        """On another device."""
        return mapped(lambda t: t.to(device), self)


def stack(layouts: Sequence[Layout]) -> Layout:
    """One layout of several heads, from layouts of one or more.

    Args:
        layouts: of the same lengths and block.

    Raises:
        ShapeError: they are not.

    Example:
        >>> tile = Layout(torch.ones(1, 1).bool(), 8)
        >>> stack([tile, ~tile]).blocks.flatten()
        tensor([ True, False])
    """
    layouts = list(layouts)
    if not layouts or any(t.tiling != layouts[0].tiling for t in layouts):
        raise ShapeError(f"layouts of one M, N and block can be stacked, and at least one, but got {layouts}")
    first, index, words, count = layouts[0], [], [], 0
    for t in layouts:
        index.append(torch.full_like(t.blocks, -1, dtype=torch.int32) if t.bits is None else t.bits.index)
        if t.bits is not None:
            index[-1] = torch.where(t.bits.index < 0, -1, t.bits.index + count)
            words.append(t.bits.words)
            count += len(t.bits.words)
    bits = Bits(torch.cat(index), torch.cat(words)) if words else None
    return Layout(torch.cat([t.blocks for t in layouts]), first.block, first.lengths, bits)


def check(blocks: Tensor, block: int, lengths: Sequence[int]) -> Tensor:
    """``blocks`` as ``[H|1, I, J]``, if all is well."""
    check_block(block)
    check_tensors({"blocks": blocks})
    if blocks.dtype != torch.bool:
        raise TypeError(
            f"blocks is {blocks.dtype}, but must be boolean, True where a tile is live: write blocks.bool()"
        )
    if blocks.dim() == 2:
        blocks = blocks[None]
    if blocks.dim() != 3 or not blocks.shape[0]:
        raise ShapeError(f"blocks is [M/{block}, N/{block}] or [H, M/{block}, N/{block}], but got {list(blocks.shape)}")
    if lengths:
        wanted = Tiling(block, *lengths).counts
        for letter, length, got, want in zip("MN", lengths, blocks.shape[-2:], wanted, strict=True):
            if got != want:
                raise ShapeError(f"blocks has {letter}/{block}={got}, but {letter}={length} needs {want}")
    return blocks


def check_block(block: object) -> None:
    if block not in BLOCKS or isinstance(block, bool):
        raise ValueError(f"block={block!r} is not one of {', '.join(map(str, BLOCKS))}")
