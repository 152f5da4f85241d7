"""Patterns of the sparse transformers, in tokens or in blocks of them, and the way between the two.

The numbers are of tokens where the pattern is a mask, and of blocks where it becomes a block layout. Heads that
differ are patterns that are stacked: ``torch.stack([fixed(8, group=h % 2) for h in range(4)])``.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .. import random as keys
from .._core.errors import KeyRequired, ShapeError
from .._core.kinds import is_integer

Length = int | tuple[int, int]
Hubs = Iterable[int | tuple[int, int]]


def fixed(
    length: Length, window: int = 4, summary: int = 1, group: int = 0, *, causal: bool = False, horizontal: bool = False
) -> Tensor:
    """Each window sees itself, and all see the summary of each window, its last places (Child et al., 2019).

    Args:
        length: of the sequence, in tokens or blocks; or of queries and of keys.
        window: places in a window; a last one that is shorter has its summary at the end of the sequence, be it
            longer than that window.
        summary: places in a summary, which must divide ``window``.
        group: how many summaries to the left of the last the summary is, so that heads can differ.
        causal: whether the future is hidden.
        horizontal: whether summaries see all, too.

    Returns:
        bool ``[length, length]``, or ``[queries, keys]``.

    Raises:
        ValueError: sizes that do not go together, or summaries that see all and no future.

    Example:
        >>> fixed(4, window=2).long()
        tensor([[1, 1, 0, 1],
                [1, 1, 0, 1],
                [0, 1, 1, 1],
                [0, 1, 1, 1]])
    """
    if not 1 <= summary <= window or window % summary:
        raise ValueError(f"summary={summary} must divide window={window}")
    if not 0 <= group < window // summary:
        raise ValueError(f"group={group} must be one of the {window // summary} that a window has")
    _check_horizontal(causal, horizontal)
    rows, columns = (_summaries(count, window, summary, group) for count in _sides(length))
    return _whole(_windows(length, [window]), rows, columns, causal, horizontal)


def variable(
    length: Length,
    windows: Sequence[int] = (4,),
    hubs: Hubs = (0,),
    random: int = 0,
    *,
    causal: bool = False,
    horizontal: bool = False,
    key: Tensor | None = None,
) -> Tensor:
    """Windows of several sizes see themselves, all see the listed places, and each row some by chance.

    Args:
        length: of the sequence, in tokens or blocks; or of queries and of keys.
        windows: their sizes; the last one goes on to the end.
        hubs: the places that all see; a pair is all from its first to before its second.
        random: how many places each row sees by chance; no more than it may see when ``causal``.
        causal: whether the future is hidden.
        horizontal: whether the listed places see all, too.
        key: what chance is drawn with; required when ``random`` > 0.

    Returns:
        bool ``[length, length]``, or ``[queries, keys]``.

    Raises:
        ValueError: sizes that do not go together, or places that do not exist.
        KeyRequired: chance without a key.

    Example:
        >>> variable(4, windows=[1, 2], hubs=[3]).long()
        tensor([[1, 0, 0, 1],
                [0, 1, 1, 1],
                [0, 1, 1, 1],
                [0, 0, 0, 1]])
    """
    if not windows or not all(is_integer(size) and size >= 1 for size in windows):
        raise ValueError(f"windows={list(windows)} must be at least one size, each at least 1")
    _check_horizontal(causal, horizontal)
    local = _by_chance(_windows(length, windows), random, causal, key)
    return _whole(local, *_listed(length, hubs), causal, horizontal)


def bigbird(
    length: Length, window: int = 3, hubs: int = 1, random: int = 1, *, causal: bool = False, key: Tensor | None = None
) -> Tensor:
    """Rows see their neighbours, the first places, and some by chance; the first see all (Zaheer et al., 2020).

    Args:
        length: of the sequence, in tokens or blocks; or of queries and of keys.
        window: how many neighbours, oneself in their middle, so an odd number.
        hubs: how many first places see all and are seen by all.
        random: how many places each row sees by chance; no more than it may see when ``causal``.
        causal: whether the future is hidden.
        key: what chance is drawn with; required when ``random`` > 0.

    Returns:
        bool ``[length, length]``, or ``[queries, keys]``.

    Raises:
        ValueError: an even window, or more places than there are.
        KeyRequired: chance without a key.

    Example:
        >>> bigbird(4, random=0).long()
        tensor([[1, 1, 1, 1],
                [1, 1, 1, 0],
                [1, 1, 1, 1],
                [1, 0, 1, 1]])
    """
    if not is_integer(hubs) or not 0 <= hubs <= max(_sides(length)):
        raise ValueError(f"hubs={hubs} must lie between 0 and length={max(_sides(length))}")
    local = _by_chance(_band(length, window), random, causal, key)
    return _whole(local, *_listed(length, range(hubs)), causal, True)


def longformer(length: Length, window: int = 3, hubs: Hubs = (0,), *, causal: bool = False) -> Tensor:
    """Rows see their neighbours; the listed places see all and are seen by all (Beltagy et al., 2020).

    Args:
        length: of the sequence, in tokens or blocks; or of queries and of keys.
        window: how many neighbours, oneself in their middle, so an odd number.
        hubs: the places that see all; a pair is all from its first to before its second.
        causal: whether the future is hidden.

    Returns:
        bool ``[length, length]``, or ``[queries, keys]``.

    Raises:
        ValueError: an even window, or places that do not exist.

    Example:
        >>> longformer(4, hubs=[3]).long()
        tensor([[1, 1, 0, 1],
                [1, 1, 1, 1],
                [0, 1, 1, 1],
                [1, 1, 1, 1]])
    """
    return _whole(_band(length, window), *_listed(length, hubs), causal, True)


def pool(mask: Tensor, block: int) -> Tensor:
    """The blocks of a pattern that hold any True: its layout, in which the last ones may be smaller.

    Args:
        mask: bool ``[..., M, N]``.
        block: tokens along each side of a block.

    Returns:
        bool ``[..., ⌈M / block⌉, ⌈N / block⌉]``.

    Example:
        >>> from xfn.patterns import local_1d
        >>> pool(local_1d(6, 3), 2).long()
        tensor([[1, 1, 0],
                [1, 1, 1],
                [0, 1, 1]])
    """
    *batch, M, N = mask.shape
    padded = torch.nn.functional.pad(mask, (0, -N % block, 0, -M % block))
    return padded.reshape(*batch, -(-M // block), block, -(-N // block), block).any(-1).any(-2)


def expand(blocks: Tensor, block: int, M: int | None = None, N: int | None = None) -> Tensor:
    """The pattern of a layout: every coefficient of a block is as the block.

    Args:
        blocks: bool ``[..., m, n]``.
        block: tokens along each side of a block.
        M, N: how many rows and columns there are; by default all of the last blocks.

    Returns:
        bool ``[..., M, N]``.

    Example:
        >>> expand(torch.eye(2).bool(), 2, N=3).long()
        tensor([[1, 1, 0],
                [1, 1, 0],
                [0, 0, 1],
                [0, 0, 1]])
    """
    whole = blocks.bool().repeat_interleave(block, -2).repeat_interleave(block, -1)
    return whole[..., :M, :N]


def gather(x: Tensor, blocks: Tensor, block: int) -> Tensor:
    """The blocks of a matrix that a layout has, row by row, one head after the other.

    Args:
        x: ``[..., H, M, N]``, lengths that are multiples of ``block``.
        blocks: bool ``[H, M / block, N / block]``.
        block: tokens along each side of a block.

    Returns:
        ``[..., nnz, block, block]``.

    Raises:
        ShapeError: a layout of other shape.

    Example:
        >>> gather(torch.arange(16.0).reshape(1, 4, 4), torch.eye(2).bool()[None], 2)
        tensor([[[ 0.,  1.],
                 [ 4.,  5.]],
        <BLANKLINE>
                [[10., 11.],
                 [14., 15.]]])
    """
    H, M, N = x.shape[-3:]
    if blocks.shape != (H, M / block, N / block):
        raise ShapeError(f"x [..., H, M, N] is {[H, M, N]}, of which blocks {list(blocks.shape)} are no layout")
    tiles = x.reshape(*x.shape[:-2], M // block, block, N // block, block).transpose(-3, -2)
    return tiles[..., blocks.bool(), :, :]


def _sides(length: Length) -> tuple[int, int]:
    return length if isinstance(length, tuple) else (length, length)


def _whole(local: Tensor, rows: Tensor, columns: Tensor, causal: bool, horizontal: bool) -> Tensor:
    """What is seen near by, and the columns that all see, whose rows see all when ``horizontal``."""
    whole = local | columns.to(local.device)
    whole = whole | rows.to(local.device)[:, None] if horizontal else whole
    return whole.tril() if causal else whole


def _check_horizontal(causal: bool, horizontal: bool) -> None:
    if causal and horizontal:
        raise ValueError("horizontal=True lets places see all, which causal=True hides: choose one")


def _band(length: Length, window: int) -> Tensor:
    if not is_integer(window) or window < 1 or window % 2 == 0:
        raise ValueError(f"window={window} has no middle: it must be an odd number of places")
    m, n = map(torch.arange, _sides(length))
    return (m[:, None] - n).abs() <= window // 2


def _windows(length: Length, sizes: Sequence[int]) -> Tensor:
    """One window after the other, the last size again and again."""
    ends = torch.tensor(sizes).cumsum(0)

    def owner(count: int) -> Tensor:
        x = torch.arange(count)
        later = len(ends) + (x - ends[-1]) // sizes[-1]
        return torch.where(x < ends[-1], torch.bucketize(x, ends, right=True), later)

    m, n = map(owner, _sides(length))
    return m[:, None] == n


def _summaries(count: int, window: int, summary: int, group: int) -> Tensor:
    """The places of every window's summary, which ends with the sequence where the window is too short for it."""
    starts = torch.arange(0, count, window) + window - (1 + group) * summary
    places = starts.clamp(max=max(0, count - summary))[:, None] + torch.arange(summary)
    seen = torch.zeros(count, dtype=torch.bool)
    seen[places[places < count]] = True
    return seen


def _listed(length: Length, hubs: Hubs) -> tuple[Tensor, Tensor]:
    """The rows and the columns of places and of ranges of them."""
    rows, columns = _sides(length)
    seen = torch.zeros(max(rows, columns), dtype=torch.bool)
    for hub in hubs:
        first, end = hub if isinstance(hub, tuple) else (hub, hub + 1)
        if not 0 <= first < end <= len(seen):
            raise ValueError(f"hub {hub} is not among the {len(seen)} places from 0 on")
        seen[first:end] = True
    return seen[:rows], seen[:columns]


def _by_chance(local: Tensor, count: int, causal: bool, key: Tensor | None) -> Tensor:
    """With ``count`` different places per row, or all that a row may see where they are fewer; where the key is."""
    if not count:
        return local
    if not is_integer(count) or not 0 < count <= local.shape[-1]:
        raise ValueError(f"random={count} must lie between 0 and length={local.shape[-1]}")
    if key is None:
        raise KeyRequired(f"random={count} draws places by chance, which needs a key: pass key=random.key(seed)")
    allowed = torch.ones_like(local, device=key.device)
    allowed = allowed.tril() if causal else allowed
    score = torch.where(allowed, keys.uniform(key, tuple(local.shape)), -1.0)
    return local.to(key.device) | torch.zeros_like(allowed).scatter(1, score.topk(count).indices, True) & allowed
