"""Layouts of published models, whose patterns, of xfn.patterns, are of tiles here; random tiles, and global tokens."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from .. import patterns
from .. import random as draws
from .._core.errors import KeyRequired
from .._core.kinds import check_number, is_integer
from .._core.tables import Tiling
from ..patterns.blocks import Hubs
from .regular import cut, parts, positive
from .value import Layout


def random(
    M: int, N: int | None = None, *, block: int, density: float, heads: int = 1, key: Tensor | None = None
) -> Layout:
    """Tiles at random, other ones in each head, and in every row as many, up to one.

    Args:
        M, N: queries and keys; by default as many.
        block: 8, 16, 32, 64 or 128.
        density: the part of each head's tiles that is live, to the nearest tile.
        heads: how many draw their own.
        key: what they draw with.

    Raises:
        KeyRequired: there is no key.
        ValueError: a density outside [0, 1].

    Example:
        >>> random(256, block=16, density=0.25, key=draws.key(0)).density
        0.25
    """
    tiles = cut(M, N, block)
    if not 0 <= check_number("density", density) <= 1:
        raise ValueError(f"density={density} must lie in [0, 1]")
    positive("heads", heads)
    if key is None:
        raise KeyRequired("a random layout needs a key: pass key=random.key(seed)")
    rows, columns = tiles.counts
    counts = torch.arange(rows + 1, dtype=torch.float64).mul(density * columns).round().long().diff()
    most = int(counts.max()) if rows else 0
    places = (torch.arange(most) < counts[:, None]).to(key.device)
    live = torch.zeros(heads, rows, columns, dtype=torch.bool, device=key.device)
    for h in range(heads):
        score = draws.uniform(draws.fold_in(key, h), (rows, columns))
        live[h].scatter_(-1, score.topk(most).indices, places)
    return Layout(live, *parts(tiles))


def global_(M: int, N: int | None = None, *, block: int, tokens: Iterable[int] | Tensor) -> Layout:
    """The tiles of tokens that see everything and are seen by everyone.

    Args:
        M, N: queries and keys; by default as many.
        block: 8, 16, 32, 64 or 128.
        tokens: their positions, integers or a tensor of them.

    Raises:
        ValueError: a token that is neither a query nor a key.
        TypeError: a boolean mask.

    Example:
        >>> global_(32, block=8, tokens=[9]).blocks.int()
        tensor([[[0, 1, 0, 0],
                 [1, 1, 1, 1],
                 [0, 1, 0, 0],
                 [0, 1, 0, 0]]], dtype=torch.int32)
    """
    if isinstance(tokens, Tensor):
        if tokens.dtype == torch.bool:
            raise TypeError("tokens are positions, but got a mask: write tokens=mask.nonzero().flatten()")
        tokens = tokens.flatten().tolist()
    tiles, tokens = cut(M, N, block), list(tokens)
    if wrong := [t for t in tokens if not is_integer(t) or not 0 <= t < max(tiles.M, tiles.N)]:
        raise ValueError(f"tokens={wrong[:9]} are no positions among M={tiles.M} queries or N={tiles.N} keys")
    down, along = tiles.counts
    chosen = torch.zeros(max(down, along), dtype=torch.bool)
    chosen[[t // block for t in tokens]] = True
    return Layout((chosen[:along] | chosen[:down, None])[None], *parts(tiles))


def bigbird(
    M: int,
    N: int | None = None,
    *,
    block: int,
    window: int = 3,
    hubs: int = 1,
    random: int = 1,
    causal: bool = False,
    heads: int = 1,
    key: Tensor | None = None,
) -> Layout:
    """A band, the first rows and columns, and some tiles of each row at random; all sizes in tiles.

    Args:
        M, N: queries and keys; by default as many.
        block: 8, 16, 32, 64 or 128.
        window: the width of the band, odd.
        hubs: rows and columns, from the first on, that are live throughout.
        random: how many tiles of each row are drawn, of those that it may have.
        causal: without the future.
        heads: how many draw their own.
        key: what they draw with.

    Raises:
        KeyRequired: something random without a key.
        ValueError: numbers that do not fit.

    Example:
        >>> bigbird(80, block=16, random=0).blocks.int()
        tensor([[[1, 1, 1, 1, 1],
                 [1, 1, 1, 0, 0],
                 [1, 1, 1, 1, 0],
                 [1, 0, 1, 1, 1],
                 [1, 0, 0, 1, 1]]], dtype=torch.int32)

    Source: Zaheer et al., "Big Bird: transformers for longer sequences" (2020).
    """
    tiles = cut(M, N, block)
    draw = lambda key: patterns.bigbird(tiles.counts, window, hubs, random, causal=causal, key=key)
    return _of(tiles, draw, random, heads, key)


def longformer(
    M: int, N: int | None = None, *, block: int, window: int = 3, hubs: Hubs = (0,), causal: bool = False
) -> Layout:
    """A band, and some rows and columns that are live throughout; all sizes in tiles.

    Args:
        M, N: queries and keys; by default as many.
        block: 8, 16, 32, 64 or 128.
        window: the width of the band, odd.
        hubs: the rows and columns; a pair is all from its first to before its second.
        causal: without the future.

    Raises:
        ValueError: numbers that do not fit.

    Example:
        >>> longformer(80, block=16, causal=True).blocks.int()
        tensor([[[1, 0, 0, 0, 0],
                 [1, 1, 0, 0, 0],
                 [1, 1, 1, 0, 0],
                 [1, 0, 1, 1, 0],
                 [1, 0, 0, 1, 1]]], dtype=torch.int32)

    Source: Beltagy, Peters and Cohan, "Longformer: the long-document transformer" (2020).
    """
    tiles = cut(M, N, block)
    return Layout(patterns.longformer(tiles.counts, window, hubs, causal=causal)[None], *parts(tiles))


def variable(
    M: int,
    N: int | None = None,
    *,
    block: int,
    windows: Sequence[int] = (4,),
    hubs: Hubs = (0,),
    random: int = 0,
    causal: bool = False,
    horizontal: bool = False,
    heads: int = 1,
    key: Tensor | None = None,
) -> Layout:
    """Windows of several sizes, columns that all see, and some tiles of each row at random; all sizes in tiles.

    Args:
        M, N: queries and keys; by default as many.
        block: 8, 16, 32, 64 or 128.
        windows: the sizes of the windows, one behind the other; the last is repeated.
        hubs: the columns; a pair is all from its first to before its second.
        random: how many tiles of each row are drawn, of those that it may have.
        causal: without the future.
        horizontal: hubs' rows see everything, too.
        heads: how many draw their own.
        key: what they draw with.

    Raises:
        KeyRequired: something random without a key.
        ValueError: numbers that do not fit.

    Example:
        >>> variable(80, block=16, windows=[1, 2]).blocks.int()
        tensor([[[1, 0, 0, 0, 0],
                 [1, 1, 1, 0, 0],
                 [1, 1, 1, 0, 0],
                 [1, 0, 0, 1, 1],
                 [1, 0, 0, 1, 1]]], dtype=torch.int32)
    """
    tiles = cut(M, N, block)
    draw = lambda key: patterns.variable(
        tiles.counts, windows, hubs, random, causal=causal, horizontal=horizontal, key=key
    )
    return _of(tiles, draw, random, heads, key)


def _of(tiles: Tiling, draw: Callable[[Tensor | None], Tensor], random: int, heads: int, key: Tensor | None) -> Layout:
    """The layout of a pattern; where something is random, each head draws its own."""
    positive("heads", heads)
    if not random or key is None:
        live = draw(key).expand(heads, -1, -1)
    else:
        live = torch.stack([draw(draws.fold_in(key, h)) for h in range(heads)])
    return Layout(live, *parts(tiles))
