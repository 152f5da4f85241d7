"""Layouts of published models, in tiles: random, global tokens, BigBird, Longformer, and windows of any sizes."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .. import random as draws
from .._core.errors import KeyRequired
from .._core.kinds import check_number, is_integer
from .._core.tables import Tiling
from .regular import cut, parts, past, positive
from .value import Layout

Hubs = Iterable[int | tuple[int, int]]


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
    rows, columns = tiles.counts
    ends = torch.arange(rows + 1, dtype=torch.float64).mul(density * columns).round().long()
    return Layout(drawn(tiles, ends.diff(), heads, key), *parts(tiles))


def global_(M: int, N: int | None = None, *, block: int, tokens: Iterable[int]) -> Layout:
    """The tiles of tokens that see everything and are seen by everyone.

    Args:
        M, N: queries and keys; by default as many.
        block: 8, 16, 32, 64 or 128.
        tokens: their positions.

    Raises:
        ValueError: a token that is neither a query nor a key.

    Example:
        >>> global_(32, block=8, tokens=[9]).blocks.int()
        tensor([[[0, 1, 0, 0],
                 [1, 1, 1, 1],
                 [0, 1, 0, 0],
                 [0, 1, 0, 0]]], dtype=torch.int32)
    """
    tiles, tokens = cut(M, N, block), list(tokens)
    if wrong := [t for t in tokens if not is_integer(t) or not 0 <= t < max(tiles.M, tiles.N)]:
        raise ValueError(f"tokens={wrong} are no positions among M={tiles.M} queries or N={tiles.N} keys")
    return Layout(_hubs(tiles, [t // block for t in tokens]), *parts(tiles))


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
    if not is_integer(hubs) or hubs < 0:
        raise ValueError(f"hubs={hubs!r} is no number of tiles")
    live = _band(tiles, window) | _hubs(tiles, [(0, hubs)] if hubs else [])
    return _with_random(tiles, live, random, causal, heads, key)


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
    return _with_random(tiles, _band(tiles, window) | _hubs(tiles, hubs), 0, causal, 1, None)


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
    if not windows:
        raise ValueError("windows=[] has no size to repeat")
    for size in windows:
        positive("each of windows", size)
    ends = torch.tensor(windows).cumsum(0)

    def owner(count: int) -> Tensor:
        x = torch.arange(count)
        return torch.where(
            x < ends[-1], torch.bucketize(x, ends, right=True), len(ends) + (x - ends[-1]) // windows[-1]
        )

    i, j = map(owner, tiles.counts)
    live = (i[:, None] == j)[None] | _hubs(tiles, hubs, rows=horizontal)
    return _with_random(tiles, live, random, causal, heads, key)


# What they share; ``live`` is bool [H|1, I, J].


def drawn(tiles: Tiling, counts: Tensor, heads: int, key: Tensor | None, allowed: Tensor | None = None) -> Tensor:
    """``counts [I]`` tiles of each row, of those allowed, or all where these are fewer; one head after the other."""
    positive("heads", heads)
    if key is None:
        raise KeyRequired("a random layout needs a key: pass key=random.key(seed)")
    most = int(counts.max()) if len(counts) else 0
    places = torch.arange(most) < counts[:, None]
    live = torch.zeros(heads, *tiles.counts, dtype=torch.bool, device=key.device)
    for h in range(heads):
        score = draws.uniform(draws.fold_in(key, h), tiles.counts)
        score = score if allowed is None else score.masked_fill(~allowed, -1)
        live[h].scatter_(-1, score.topk(most).indices, places.to(key.device))
    return live if allowed is None else live & allowed


def _with_random(tiles: Tiling, live: Tensor, count: int, causal: bool, heads: int, key: Tensor | None) -> Layout:
    if not is_integer(count) or count < 0:
        raise ValueError(f"random={count!r} is no number of tiles")
    allowed = past(tiles) if causal else None
    rows, columns = tiles.counts
    if count > columns:
        raise ValueError(f"{count} random tiles are more than the {columns} of a row")
    if count:
        live = live | drawn(tiles, torch.full((rows,), count), heads, key, allowed)
    live = live if allowed is None else live & allowed
    return Layout(live.expand(heads, -1, -1), *parts(tiles))


def _band(tiles: Tiling, window: int) -> Tensor:
    positive("window", window)
    if not window % 2:
        raise ValueError(f"window={window} is even, so that no tile is in its middle")
    i, j = (torch.arange(count) for count in tiles.counts)
    return ((i[:, None] - j).abs() <= window // 2)[None]


def _hubs(tiles: Tiling, hubs: Hubs, rows: bool = True) -> Tensor:
    """The columns, and if ``rows`` the rows, of tiles and of ranges of them."""
    down, along = tiles.counts
    chosen = torch.zeros(max(down, along), dtype=torch.bool)
    for hub in hubs:
        start, end = hub if isinstance(hub, tuple) else (hub, hub + 1)
        if not 0 <= start < end <= len(chosen):
            raise ValueError(f"hub {hub} is not among the {len(chosen)} tiles")
        chosen[start:end] = True
    live = chosen[:along].expand(down, along)
    return (live | chosen[:down, None] if rows else live)[None]
