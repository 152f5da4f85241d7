"""Patterns over a sequence of tokens, and those that are drawn by chance."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import random as keys
from .._core.errors import ShapeError
from .._core.kinds import check_number, is_integer

SLAB = 1 << 18


def local_1d(length: int, window: int) -> Tensor:
    """Tokens see their neighbours: ``|m − n| ≤ window // 2``.

    Args:
        length: of the sequence.
        window: how many tokens are seen, oneself in their middle, so an odd number.

    Returns:
        bool ``[length, length]``.

    Raises:
        ValueError: an even window, which has no middle.

    Example:
        >>> local_1d(4, 3).long()
        tensor([[1, 1, 0, 0],
                [1, 1, 1, 0],
                [0, 1, 1, 1],
                [0, 0, 1, 1]])
    """
    if not is_integer(window) or window < 1 or window % 2 == 0:
        raise ValueError(f"window={window} has no middle: it must be an odd number of tokens")
    return _apart(length) <= window // 2


def causal_1d(length: int) -> Tensor:
    """Tokens see themselves and what is before them: n ≤ m.

    Args:
        length: of the sequence.

    Returns:
        bool ``[length, length]``.

    Example:
        >>> causal_1d(2).long()
        tensor([[1, 0],
                [1, 1]])
    """
    return torch.ones(length, length, dtype=torch.bool).tril()


def global_token(mask: Tensor) -> Tensor:
    """Marked tokens see all and are seen by all: mask[m] or mask[n] (Beltagy et al., 2020).

    Args:
        mask: bool ``[length]``, True for the marked ones.

    Returns:
        bool ``[length, length]``.

    Raises:
        TypeError, ShapeError: a mask that is not of booleans, or not one per token.

    Example:
        >>> global_token(torch.tensor([True, False, False])).long()
        tensor([[1, 1, 1],
                [1, 0, 0],
                [1, 0, 0]])
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask is {mask.dtype}, but must be boolean: write mask.bool()")
    if mask.dim() != 1:
        raise ShapeError(f"mask has one boolean per token, but its shape is {list(mask.shape)}")
    return mask[:, None] | mask


def random(length: int, density: float, key: Tensor) -> Tensor:
    """Each coefficient is allowed by chance, whatever the others are: with the probability ``density``.

    Args:
        length: of the sequence.
        density: the share of coefficients to expect, in [0, 1].
        key: what they are drawn with.

    Returns:
        bool ``[length, length]``.

    Raises:
        ValueError: a density that is no probability.

    Example:
        >>> random(4, 1.0, keys.key(0)).all()
        tensor(True)
    """
    if not 0 <= check_number("density", density) <= 1:
        raise ValueError(f"density={density} is no probability: it must lie in [0, 1]")
    drawn = [keys.bernoulli(child, density, count) for child, count in _slabs(key, length * length)]
    return torch.cat(drawn).reshape(length, length)


def random_from_probability(prob: Tensor, nnz: int, key: Tensor) -> Tensor:
    """``nnz`` different coefficients, drawn one after the other among those left, likely as ``prob`` says.

    Those whose x / prob is least are taken, x drawn from the exponential distribution, which is the same and takes
    one pass (Efraimidis and Spirakis, 2006). As long as every x is another, there are exactly ``nnz`` of them.

    Args:
        prob: floating ``[..., M, N]``, at least 0; it need not be normalised.
        nnz: how many to draw, at most as many as have a probability above 0.
        key: what they are drawn with.

    Returns:
        bool, in the shape of ``prob``.

    Raises:
        TypeError, ValueError: probabilities that are not floating, negative or not finite, or fewer than ``nnz``.

    Example:
        >>> random_from_probability(torch.eye(3), 3, keys.key(0)).long()
        tensor([[1, 0, 0],
                [0, 1, 0],
                [0, 0, 1]])
    """
    if not prob.is_floating_point():
        raise TypeError(f"prob is {prob.dtype}, but must be floating: write prob.float()")
    if not bool(((prob >= 0) & prob.isfinite()).all()):
        raise ValueError("prob must be finite and at least 0")
    some = int(prob.count_nonzero())
    if not is_integer(nnz) or not 0 <= nnz <= some:
        raise ValueError(f"nnz={nnz} must be an integer from 0 to {some}, which is how many have a probability above 0")
    late = []
    for (child, count), weight in zip(_slabs(key, prob.numel()), prob.flatten().split(SLAB), strict=True):
        x = -(-keys.uniform(child, count, dtype=torch.float64)).log1p()
        late.append(torch.where(weight > 0, x.log() - weight.double().log(), torch.inf))  # a quotient could overflow
    chosen = torch.cat(late).topk(nnz, largest=False, sorted=False).indices
    return torch.zeros_like(prob, dtype=torch.bool).flatten().scatter(0, chosen, True).reshape(prob.shape)


def alibi_slopes(heads: int) -> Tensor:
    """The slopes of attention with linear biases: 2^(−8 (h + 1) / heads) (Press, Smith and Lewis, 2022).

    When ``heads`` is no power of two, they are those of the next lower power, and behind them every second one of
    twice that many. ``bias.alibi`` takes them.

    Args:
        heads: H.

    Returns:
        float32 ``[H]``.

    Example:
        >>> alibi_slopes(3)
        tensor([0.0625, 0.0039, 0.2500])
    """
    if not is_integer(heads) or heads < 1:
        raise ValueError(f"heads={heads} must be an integer of at least 1")
    power = 1 << (heads.bit_length() - 1)
    slopes = torch.arange(1, power + 1) * (-8 / power)
    between = torch.arange(1, 2 * power, 2) * (-4 / power)
    return torch.cat([slopes, between[: heads - power]]).exp2()


def alibi(length: int, heads: int, threshold: float) -> Tensor:
    """Tokens see those that a linear bias takes less than ``threshold`` from: ``slopes[h] · |m − n| < threshold``.

    Args:
        length: of the sequence.
        heads: H, with the slopes of :func:`alibi_slopes`.
        threshold: in units of logits: what is hidden had less than exp(−threshold) of its weight.

    Returns:
        bool ``[H, length, length]``.

    Example:
        >>> alibi(4, 2, 0.1).sum(-1)
        tensor([[2, 3, 3, 2],
                [4, 4, 4, 4]])
    """
    slopes = alibi_slopes(heads)[:, None, None]
    return slopes * _apart(length) < check_number("threshold", threshold)


def _slabs(key: Tensor, count: int) -> Iterator[tuple[Tensor, int]]:
    """Children of a key and how many numbers each is to draw, for drawing takes several words per number."""
    for i, start in enumerate(range(0, max(1, count), SLAB)):
        yield keys.fold_in(key, i), min(SLAB, count - start)


def _apart(length: int) -> Tensor:
    place = torch.arange(length)
    return (place[:, None] - place).abs()
