"""Patterns of the sparse transformers, in tokens or in blocks of them, and the way between the two.

The numbers are of tokens where the pattern is a mask, and of blocks where it becomes a block layout. Heads that
differ are patterns that are stacked: ``torch.stack([fixed(8, group=h % 2) for h in range(4)])``.
"""

from collections.abc import Sequence
from itertools import chain, repeat

import torch
from torch import Tensor

from .. import random as keys
from .._core.errors import KeyRequired, ShapeError
from .sequence import causal_1d, local_1d


def fixed(
    length: int, window: int = 4, summary: int = 1, group: int = 0, *, causal: bool = False, horizontal: bool = False
) -> Tensor:
    """Each window sees itself, and all see the summary of each window, its last places (Child et al., 2019).

    Args:
        length: of the sequence, in tokens or blocks.
        window: places in a window; a last one that is shorter has its summary at the end of the sequence.
        summary: places in a summary, which must divide ``window``.
        group: how many summaries to the left of the last the summary is, so that heads can differ.
        causal: whether the future is hidden.
        horizontal: whether summaries see all, too.

    Returns:
        bool ``[length, length]``.

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
    first = window - (1 + group) * summary
    starts = [*range(first, length - length % window, window)]
    if length % window:
        starts.append(max(0, min(length - length % window + first, length - summary)))
    seen = torch.zeros(length, dtype=torch.bool)
    for start in starts:
        seen[start : start + summary] = True
    return _whole(_windows(length, [window]), seen, causal, horizontal)


def variable(
    length: int,
    windows: Sequence[int] = (4,),
    hubs: Sequence[int] = (0,),
    random: int = 0,
    *,
    causal: bool = False,
    horizontal: bool = False,
    key: Tensor | None = None,
) -> Tensor:
    """Windows of several sizes see themselves, all see the listed places, and each row some by chance.

    Args:
        length: of the sequence, in tokens or blocks.
        windows: their sizes; the last one goes on to the end.
        hubs: the places that all see.
        random: how many places each row sees by chance; no more than it may see when ``causal``.
        causal: whether the future is hidden.
        horizontal: whether the listed places see all, too.
        key: what chance is drawn with; required when ``random`` > 0.

    Returns:
        bool ``[length, length]``.

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
    if not windows or min(windows) < 1:
        raise ValueError(f"windows={list(windows)} must be at least one size, each at least 1")
    _check_horizontal(causal, horizontal)
    local = _by_chance(_windows(length, windows), random, causal, key)
    return _whole(local, _listed(length, hubs), causal, horizontal)


def bigbird(
    length: int, window: int = 3, hubs: int = 1, random: int = 1, *, causal: bool = False, key: Tensor | None = None
) -> Tensor:
    """Rows see their neighbours, the first places, and some by chance; the first see all (Zaheer et al., 2020).

    Args:
        length: of the sequence, in tokens or blocks.
        window: how many neighbours, oneself in their middle, so an odd number.
        hubs: how many first places see all and are seen by all.
        random: how many places each row sees by chance; no more than it may see when ``causal``.
        causal: whether the future is hidden.
        key: what chance is drawn with; required when ``random`` > 0.

    Returns:
        bool ``[length, length]``.

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
    if not 0 <= hubs <= length:
        raise ValueError(f"hubs={hubs} must lie between 0 and length={length}")
    local = _by_chance(local_1d(length, window), random, causal, key)
    return _whole(local, _listed(length, range(hubs)), causal, True)


def longformer(length: int, window: int = 3, hubs: Sequence[int] = (0,), *, causal: bool = False) -> Tensor:
    """Rows see their neighbours; the listed places see all and are seen by all (Beltagy et al., 2020).

    Args:
        length: of the sequence, in tokens or blocks.
        window: how many neighbours, oneself in their middle, so an odd number.
        hubs: the places that see all.
        causal: whether the future is hidden.

    Returns:
        bool ``[length, length]``.

    Raises:
        ValueError: an even window, or places that do not exist.

    Example:
        >>> longformer(4, hubs=[3]).long()
        tensor([[1, 1, 0, 1],
                [1, 1, 1, 1],
                [0, 1, 1, 1],
                [1, 1, 1, 1]])
    """
    return _whole(local_1d(length, window), _listed(length, hubs), causal, True)


def pool(mask: Tensor, block: int) -> Tensor:
    """The blocks of a pattern that hold any True: its layout, in which the last ones may be smaller.

    Args:
        mask: bool ``[..., M, N]``.
        block: tokens along each side of a block.

    Returns:
        bool ``[..., ⌈M / block⌉, ⌈N / block⌉]``.

    Example:
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


def _whole(local: Tensor, seen: Tensor, causal: bool, horizontal: bool) -> Tensor:
    """What is seen near by, and the places that all see, and that see all when ``horizontal``."""
    seen = seen.to(local.device)
    whole = local | seen | seen[:, None] if horizontal else local | seen
    return whole & causal_1d(len(seen)).to(local.device) if causal else whole


def _check_horizontal(causal: bool, horizontal: bool) -> None:
    if causal and horizontal:
        raise ValueError("horizontal=True lets places see all, which causal=True hides: choose one")


def _windows(length: int, sizes: Sequence[int]) -> Tensor:
    """One window after the other, the last size again and again."""
    counted = chain.from_iterable(repeat(i, size) for i, size in enumerate(chain(sizes, repeat(sizes[-1], length))))
    own = torch.tensor([i for i, _ in zip(counted, range(length), strict=False)])
    return own[:, None] == own


def _listed(length: int, hubs: Sequence[int]) -> Tensor:
    if strange := [hub for hub in hubs if not 0 <= hub < length]:
        raise ValueError(f"hubs {strange} are not among the {length} places from 0 on")
    seen = torch.zeros(length, dtype=torch.bool)
    seen[list(hubs)] = True
    return seen


def _by_chance(local: Tensor, count: int, causal: bool, key: Tensor | None) -> Tensor:
    """With ``count`` different places per row, or all that a row may see where they are fewer; where the key is."""
    length = len(local)
    if not count:
        return local
    if not 0 < count <= length:
        raise ValueError(f"random={count} must lie between 0 and length={length}")
    if key is None:
        raise KeyRequired(f"random={count} draws places by chance, which needs a key: pass key=random.key(seed)")
    allowed = (causal_1d(length) if causal else torch.ones(length, length, dtype=torch.bool)).to(key.device)
    score = torch.where(allowed, keys.uniform(key, (length, length)), -1.0)
    return local.to(key.device) | torch.zeros_like(allowed).scatter(1, score.topk(count).indices, True) & allowed
