"""Layouts that follow from a rule: dense, causal, local, strided, fixed, or from a mask."""

import torch
from torch import Tensor

from .. import patterns
from .._core.errors import ShapeError
from .._core.kinds import is_integer
from .._core.tables import Bits, Tiling, pack
from .._core.terms import Corner
from .value import Layout, check_block


def dense(M: int, N: int | None = None, *, block: int) -> Layout:
    """Every tile.

    Args:
        M, N: queries and keys; by default as many.
        block: 8, 16, 32, 64 or 128.

    Example:
        >>> dense(100, block=16).density
        1.0
    """
    tiles = cut(M, N, block)
    return Layout(torch.ones(1, *tiles.counts, dtype=torch.bool), *parts(tiles))


def causal(M: int, N: int | None = None, *, block: int, corner: Corner = "top-left") -> Layout:
    """The tiles that have something past: n ≤ m, or n − N ≤ m − M from the bottom-right corner.

    The tiles on the diagonal are whole; a bias trims within them.

    Args:
        M, N: queries and keys; by default as many.
        block: 8, 16, 32, 64 or 128.
        corner: where the diagonal starts, as in :func:`xfn.bias.causal`.

    Example:
        >>> causal(48, block=16).blocks.int()
        tensor([[[1, 0, 0],
                 [1, 1, 0],
                 [1, 1, 1]]], dtype=torch.int32)
    """
    tiles = cut(M, N, block)
    shift = {"top-left": 0, "bottom-right": tiles.N - tiles.M}[corner]
    return Layout((gaps(tiles)[1] + shift >= 0)[None], *parts(tiles))


def local(M: int, N: int | None = None, *, block: int, window: int) -> Layout:
    """The tiles that have something near: \\|m − n\\| < window.

    With :func:`causal`, that is a query's own position and the window − 1 before it, tile by tile.

    Args:
        M, N: queries and keys; by default as many.
        block: 8, 16, 32, 64 or 128.
        window: in tokens; at least 1.

    Example:
        >>> local(64, block=16, window=16).blocks.int()
        tensor([[[1, 1, 0, 0],
                 [1, 1, 1, 0],
                 [0, 1, 1, 1],
                 [0, 0, 1, 1]]], dtype=torch.int32)
    """
    tiles = cut(M, N, block)
    positive("window", window)
    least, most = gaps(tiles)
    return Layout(((least < window) & (most > -window))[None], *parts(tiles))


def strided(M: int, N: int | None = None, *, block: int, stride: int) -> Layout:
    """Every stride-th key of the past: n ≤ m and (m − n) mod stride = 0, coefficient by coefficient.

    Args:
        M, N: queries and keys; by default as many.
        block: 8, 16, 32, 64 or 128.
        stride: in tokens; at least 1.

    Example:
        >>> strided(8, block=8, stride=3).to_mask()[6].int()
        tensor([1, 0, 0, 1, 0, 0, 1, 0], dtype=torch.int32)

    Source: Child, Gray, Radford and Sutskever, "Generating long sequences with sparse transformers" (2019).
    """
    tiles = cut(M, N, block)
    positive("stride", stride)
    least, most = gaps(tiles)
    live = most // stride * stride >= least.clamp(min=0)
    full = live & (least >= 0) if stride == 1 else torch.zeros_like(live)
    diagonals = torch.arange(tiles.counts[0])  # tiles at one distance below the diagonal have the same coefficients
    inside = torch.arange(block)
    gap = diagonals[:, None, None] * block + inside[:, None] - inside
    of = diagonals[:, None] - torch.arange(tiles.counts[1])
    index = torch.where(live & ~full, of, -1).int()
    bits = Bits(index[None], pack((gap >= 0) & (gap % stride == 0))).tidied()
    return Layout(live[None], *parts(tiles), bits)


def fixed(
    M: int,
    N: int | None = None,
    *,
    block: int,
    window: int,
    verts: int = 1,
    vertsize: int = 1,
    heads: int = 1,
    causal: bool = True,
    horizontal: bool = False,
) -> Layout:
    """Each query's own window, and the tiles that sum up every window: its last ones, other ones for other heads.

    The tiles on the diagonal are whole; a bias trims within them.

    Args:
        M, N: queries and keys; by default as many.
        block: 8, 16, 32, 64 or 128.
        window: in tokens, a multiple of block.
        verts: in how many ways heads choose their summaries: head h takes the (h mod verts)-th group of ``vertsize``
            tiles from the end of each window, and for a short last window the last ones of all.
        vertsize: tiles in a summary; it divides a window's.
        heads: 1, or a multiple of verts.
        causal: without the future.
        horizontal: the summaries' queries see everything; not with causal.

    Raises:
        ValueError: numbers that do not fit.

    Example:
        >>> fixed(64, block=8, window=32).blocks[0, [0, 3, 4, 7]].int()
        tensor([[1, 0, 0, 0, 0, 0, 0, 0],
                [1, 1, 1, 1, 0, 0, 0, 0],
                [0, 0, 0, 1, 1, 0, 0, 0],
                [0, 0, 0, 1, 1, 1, 1, 1]], dtype=torch.int32)

    Source: Child, Gray, Radford and Sutskever, "Generating long sequences with sparse transformers" (2019).
    """
    tiles = cut(M, N, block)
    for name, value in (("window", window), ("verts", verts), ("vertsize", vertsize), ("heads", heads)):
        positive(name, value)
    if window % block:
        raise ValueError(f"window={window} is not a multiple of block={block}")
    stride = window // block
    if stride % vertsize or verts * vertsize > stride:
        raise ValueError(f"a window has {stride} tiles, which verts={verts} times vertsize={vertsize} do not fit")
    if heads % verts:
        raise ValueError(f"heads={heads} is not a multiple of verts={verts}")
    if causal and horizontal:
        raise ValueError("horizontal=True lets summaries see the future: write causal=False")
    each = [
        patterns.fixed(tiles.counts, stride, vertsize, group, causal=causal, horizontal=horizontal)
        for group in range(verts)
    ]
    return Layout(torch.stack(each).repeat(heads // verts, 1, 1), *parts(tiles))


def from_mask(mask: Tensor, block: int) -> Layout:
    """The tiles where a mask is True anywhere, and for those where it is not everywhere, its coefficients.

    Args:
        mask: bool ``[M, N]``, or ``[H, M, N]`` where heads differ.
        block: 8, 16, 32, 64 or 128.

    Raises:
        ShapeError, TypeError, ValueError: what is no such mask; another block.

    Example:
        >>> banded = torch.ones(64, 64).tril().triu(-20).bool()
        >>> made = from_mask(banded, block=16)
        >>> made.density, torch.equal(made.to_mask(), banded)
        (0.5625, True)
    """
    check_block(block)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"a mask is a boolean tensor, but got {getattr(mask, 'dtype', type(mask).__name__)}")
    if mask.dim() not in (2, 3) or not mask[..., :0, :0].sum((-1, -2)).numel():
        raise ShapeError(f"a mask is [M, N] or [H, M, N], but got {list(mask.shape)}")
    whole = mask[None] if mask.dim() == 2 else mask
    tiles = Tiling(block, *whole.shape[-2:])
    found = tiles.of_mask(whole)
    return Layout(found.blocks, *parts(tiles), found.bits)


# What the rules share.


def cut(M: int, N: int | None, block: int) -> Tiling:
    """M queries and N keys in tiles."""
    check_block(block)
    N = M if N is None else N
    for name, value in (("M", M), ("N", N)):
        if not is_integer(value) or value < 0:
            raise ValueError(f"{name}={value!r} is no length")
    return Tiling(block, M, N)


def parts(tiles: Tiling) -> tuple[int, tuple[int, int]]:
    """What a layout takes after its blocks."""
    return tiles.block, (tiles.M, tiles.N)


def gaps(tiles: Tiling) -> tuple[Tensor, Tensor]:
    """The least and the greatest m − n of each tile ``[I, J]``."""
    m, n = (torch.arange(count) * tiles.block for count in tiles.counts)
    last_m, last_n = ((x + tiles.block).clamp(max=end) - 1 for x, end in ((m, tiles.M), (n, tiles.N)))
    return m[:, None] - last_n, last_m[:, None] - n


def positive(name: str, value: object) -> None:
    if not is_integer(value) or value < 1:  # type: ignore[operator]
        raise ValueError(f"{name}={value!r} must be at least 1")
