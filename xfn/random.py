"""Keys: randomness as an argument.

A key is an int64 tensor ``[2]`` that holds two 32-bit words. It is never used up: the same key draws the same
numbers, so a program splits it for every new need. Keys are tensors like any other and go through vmap, grad
and compile.

    split(key, n)[i] == fold_in(key, i)                         a key's children are numbered
    vmap(draw)(split(key, n))[i] == draw(fold_in(key, i))       a batch draws what its examples draw

Bits come from Philox-4x32-10 and are the same on every device. Draws use the counters (i, 0, 0, 0), where word
i % 4 of block i // 4 is number i; children use (i low, i high, 0, 1), so they never meet.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._core.errors import ShapeError
from ._core.philox import MASK, philox

Size = int | Sequence[int]
CHILD = 1


def key(seed: int, *, device: torch.device | str | None = None) -> Tensor:
    """The key that a seed names: its low and its high 32 bits.

    Args:
        seed: any integer; it is taken modulo 2⁶⁴.
        device: where the key, and so all that is drawn with it, lives.

    Returns:
        int64 ``[2]``.

    Example:
        >>> key(7)
        tensor([7, 0])
    """
    return torch.tensor([seed & MASK, (seed >> 32) & MASK], dtype=torch.int64, device=device)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """The child of ``key`` that ``data`` numbers.

    Args:
        key: int64 ``[..., 2]``.
        data: an integer in [0, 2⁶³), or an int64 tensor of them that broadcasts with ``...``.

    Returns:
        int64 ``[..., 2]``.

    Example:
        >>> torch.equal(fold_in(key(0), 3), split(key(0), 5)[3])
        True
    """
    _check(key)
    number = torch.as_tensor(data, dtype=torch.int64, device=key.device)
    zero = torch.zeros_like(number)
    words = philox(key, (number & MASK, (number >> 32) & MASK, zero, zero + CHILD))
    return torch.stack(words[:2], -1)


def split(key: Tensor, n: Size = 2) -> Tensor:
    """``n`` children of a key, or a whole shape of them: ``split(key, n)[i] == fold_in(key, i)``.

    Args:
        key: int64 ``[2]``.
        n: how many, or a shape, which is filled row by row.

    Returns:
        int64 ``[n, 2]``.

    Example:
        >>> k, dropout = split(key(0))
        >>> split(key(0), (3, 4)).shape
        torch.Size([3, 4, 2])
    """
    _check(key, single=True)
    shape = _shape(n)
    return fold_in(key, torch.arange(math.prod(shape), device=key.device).reshape(shape))


def spread(key: Tensor, batch: Sequence[int]) -> Tensor:
    """One key per example: the children of one key, row by row, or keys that are one per example already.

    Args:
        key: int64 ``[2]`` or ``[*batch, 2]``.
        batch: a shape.

    Returns:
        int64 ``[*batch, 2]``.

    Example:
        >>> spread(key(0), (3, 4)).shape
        torch.Size([3, 4, 2])
    """
    _check(key)
    if tuple(key.shape) == (*batch, 2):
        return key
    if key.dim() != 1:
        raise ShapeError(f"key has shape {list(key.shape)}: one key is [2], one per example {[*batch, 2]}")
    return split(key, batch)


def uniform(
    key: Tensor, shape: Size = (), low: float = 0.0, high: float = 1.0, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Numbers drawn evenly from [low, high).

    u = low + (high − low) · j / 2ᵇ, with j the top b bits of a word, or of two for float64; b is the precision of
    ``dtype``: 53, 24, 11 or 8 bits.

    Args:
        key: int64 ``[2]``.
        shape: of the result.
        low, high: the interval.
        dtype: float64, float32, float16 or bfloat16.

    Returns:
        ``shape``.

    Example:
        >>> u = uniform(key(0), (1000,), -1.0, 1.0)
        >>> bool((u >= -1).all() and (u < 1).all())
        True
    """
    bits = _precision(dtype)
    return _bits(key, shape, bits).to(dtype) * 2.0**-bits * (high - low) + low


def normal(key: Tensor, shape: Size = (), *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers drawn from the standard normal distribution.

    z = √2 · erfinv((2j + 1) / 2ᵇ − 1) in float64, rounded once to ``dtype``, with j of b = 32 bits, or 52 for
    float64; |z| stays below 6.4, or 8.3.

    Args:
        key: int64 ``[2]``.
        shape: of the result.
        dtype: float64, float32, float16 or bfloat16.

    Returns:
        ``shape``.

    Example:
        >>> z = normal(key(0), (4096,))
        >>> abs(z.mean().item()) < 0.05 and abs(z.std().item() - 1) < 0.05
        True
    """
    bits = 52 if dtype == torch.float64 else 32
    unit = (2 * _bits(key, shape, bits) + 1).double() * 2.0**-bits - 1
    return (torch.erfinv(unit) * math.sqrt(2)).to(dtype)


def bernoulli(key: Tensor, p: float | Tensor = 0.5, shape: Size | None = None) -> Tensor:
    """Booleans that are True with probability ``p``: a 24-bit uniform number is below it.

    Args:
        key: int64 ``[2]``.
        p: a probability, or a floating tensor of them that broadcasts with ``shape``.
        shape: of the result; by default that of ``p``.

    Returns:
        bool ``shape``.

    Example:
        >>> bernoulli(key(0), 0.25, (3, 4)).shape
        torch.Size([3, 4])
    """
    if shape is None:
        shape = tuple(p.shape) if isinstance(p, Tensor) else ()
    return uniform(key, shape) < p


def randint(key: Tensor, shape: Size, low: int, high: int) -> Tensor:
    """Integers drawn evenly from [low, high): 63 bits modulo high − low, so uneven by at most (high − low) / 2⁶³.

    Args:
        key: int64 ``[2]``.
        shape: of the result.
        low, high: the interval; ``high`` must exceed ``low``.

    Returns:
        int64 ``shape``.

    Example:
        >>> dice = randint(key(0), (1000,), 1, 7)
        >>> dice.min().item(), dice.max().item()
        (1, 6)
    """
    if high <= low:
        raise ValueError(f"randint draws from [low, high), but low={low} and high={high} leave nothing to draw")
    return _bits(key, shape, 63) % (high - low) + low


def permutation(key: Tensor, x: int | Tensor) -> Tensor:
    """``x`` in a random order along its first dim, or the numbers 0 … x − 1 in a random order.

    Args:
        key: int64 ``[2]``.
        x: how many numbers, or a tensor ``[n, …]``.

    Returns:
        int64 ``[x]``, or a tensor like ``x``.

    Example:
        >>> sorted(permutation(key(0), 5).tolist())
        [0, 1, 2, 3, 4]
    """
    n = x if isinstance(x, int) else x.shape[0]
    order = torch.sort(_bits(key, n, 63), stable=True).indices
    return order if isinstance(x, int) else x[order]


def _bits(key: Tensor, shape: Size, width: int) -> Tensor:
    """``width`` random bits for every number: the top of one word, or of two from 33 bits on."""
    _check(key, single=True)
    shape = _shape(shape)
    count, words = math.prod(shape), 1 + (width > 32)
    blocks = torch.arange(-(-count * words // 4), device=key.device)
    zero = torch.zeros_like(blocks)
    drawn = torch.stack(philox(key, (blocks & MASK, blocks >> 32, zero, zero)), -1).flatten()
    if words == 1:
        return (drawn[:count] >> (32 - width)).reshape(shape)
    high, low = drawn[: 2 * count].reshape(*shape, 2).unbind(-1)
    return high << (width - 32) | low >> (64 - width)


def _precision(dtype: torch.dtype) -> int:
    """Bits of a floating dtype's significand, the hidden one included."""
    return 1 - round(math.log2(torch.finfo(dtype).eps))


def _shape(size: Size) -> tuple[int, ...]:
    return (size,) if isinstance(size, int) else tuple(size)


def _check(key: Tensor, single: bool = False) -> None:
    if not isinstance(key, Tensor) or key.dtype != torch.int64 or key.dim() == 0 or key.shape[-1] != 2:
        got = f"{key.dtype} {list(key.shape)}" if isinstance(key, Tensor) else repr(key)
        raise ShapeError(f"a key is an int64 tensor [2], but got {got}: write key=random.key(seed)")
    if single and key.dim() != 1:
        raise ShapeError(f"one draw takes one key [2], but got keys {list(key.shape)}: map over them with vmap")
