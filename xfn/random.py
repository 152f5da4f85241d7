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
from ._core.kinds import FLOATS, check_number, is_integer
from ._core.philox import MASK, check_key, philox

Size = int | Sequence[int]
CHILD = 1


def key(seed: int, *, device: torch.device | str | None = None) -> Tensor:
    """The key that a seed names: its low and its high 32 bits.

    Args:
        seed: any integer; it is taken modulo 2⁶⁴.
        device: where the key, and so all that is drawn with it, lives.

    Returns:
        int64 ``[2]``.

    Raises:
        TypeError: a seed that is no integer.

    Example:
        >>> key(7)
        tensor([7, 0])
    """
    if not is_integer(seed):
        raise TypeError(f"a seed is an integer, but got {seed!r}")
    return torch.tensor([seed & MASK, (seed >> 32) & MASK], dtype=torch.int64, device=device)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """The child of ``key`` that ``data`` numbers.

    Args:
        key: int64 ``[..., 2]``.
        data: an integer in [0, 2⁶³), or an int64 tensor of them that broadcasts with ``...``.

    Returns:
        int64 ``[..., 2]``.

    Raises:
        TypeError: data that are no integers.

    Example:
        >>> torch.equal(fold_in(key(0), 3), split(key(0), 5)[3])
        True
    """
    check_key(key)
    if not is_integer(data):
        raise TypeError(f"fold_in takes integers, but got {getattr(data, 'dtype', repr(data))}")
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
    check_key(key, single=True)
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
    check_key(key)
    if tuple(key.shape) == (*batch, 2):
        return key
    if key.dim() != 1:
        raise ShapeError(f"key has shape {list(key.shape)}: one key is [2], one per example {[*batch, 2]}")
    return split(key, batch)


def uniform(
    key: Tensor, shape: Size = (), low: float = 0.0, high: float = 1.0, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Numbers drawn evenly from [low, high).

    u = low + (high − low) · j / 2ᵇ, never rounded up to high, with j the top b bits of a word, or of two for float64;
    b is the precision of ``dtype``: 53, 24, 11 or 8 bits.

    Args:
        key: int64 ``[2]``.
        shape: of the result.
        low, high: the interval; low must be below high.
        dtype: float64, float32, float16 or bfloat16.

    Returns:
        ``shape`` in ``dtype``.

    Raises:
        ValueError: an empty interval.

    Example:
        >>> u = uniform(key(0), (1000,), -1.0, 1.0)
        >>> bool((u >= -1).all() and (u < 1).all())
        True
    """
    if not low < high:
        raise ValueError(f"uniform draws from [low, high), but low={low} and high={high} leave nothing to draw")
    bits = _precision(dtype)
    drawn = _bits(key, shape, bits).to(dtype) * 2.0**-bits
    return drawn if (low, high) == (0, 1) else (drawn * (high - low) + low).clamp(low, _below(high, dtype))


def normal(key: Tensor, shape: Size = (), *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers drawn from the standard normal distribution.

    z = √2 · erfinv((2j + 1) / 2ᵇ − 1) in float64, rounded once to ``dtype``, with j of b = 32 bits, or 52 for
    float64; ``|z|`` stays below 6.4, or 8.3.

    Args:
        key: int64 ``[2]``.
        shape: of the result.
        dtype: float64, float32, float16 or bfloat16.

    Returns:
        ``shape`` in ``dtype``.

    Example:
        >>> z = normal(key(0), (4096,))
        >>> abs(z.mean().item()) < 0.05 and abs(z.std().item() - 1) < 0.05
        True
    """
    _precision(dtype)
    bits = 52 if dtype == torch.float64 else 32
    unit = (2 * _bits(key, shape, bits) + 1).double() * 2.0**-bits - 1
    return (torch.erfinv(unit) * math.sqrt(2)).to(dtype)


def bernoulli(key: Tensor, p: float | Tensor = 0.5, shape: Size | None = None) -> Tensor:
    """Booleans that are True with probability ``p``: a 24-bit uniform number is below it.

    Args:
        key: int64 ``[2]``.
        p: a probability, or a floating tensor of them that broadcasts to ``shape``.
        shape: of the result; by default that of ``p``.

    Returns:
        bool ``shape``.

    Raises:
        ValueError: p is a number outside [0, 1].
        ShapeError: p does not broadcast to ``shape``.

    Example:
        >>> bernoulli(key(0), 0.25, (3, 4)).shape
        torch.Size([3, 4])
    """
    if not isinstance(p, Tensor) and not 0 <= check_number("p", p) <= 1:
        raise ValueError(f"p={p} is no probability: it must lie in [0, 1]")
    own = tuple(p.shape) if isinstance(p, Tensor) else ()
    size = own if shape is None else _shape(shape)
    if len(own) > len(size) or not all(m in (1, n) for m, n in zip(reversed(own), reversed(size), strict=False)):
        raise ShapeError(f"p has shape {list(own)}, which does not broadcast to shape={list(size)}")
    return uniform(key, size) < p


def randint(key: Tensor, shape: Size, low: int, high: int) -> Tensor:
    """Integers drawn evenly from [low, high): 63 bits modulo high − low, so uneven by at most (high − low) / 2⁶³.

    Args:
        key: int64 ``[2]``.
        shape: of the result.
        low, high: the interval, at most 2⁴⁰ long; ``high`` must exceed ``low``.

    Returns:
        int64 ``shape``.

    Raises:
        TypeError, ValueError: bounds that are no integers, or an interval that is empty or too long.

    Example:
        >>> dice = randint(key(0), (1000,), 1, 7)
        >>> dice.min().item(), dice.max().item()
        (1, 6)
    """
    if isinstance(low, Tensor) or isinstance(high, Tensor) or not (is_integer(low) and is_integer(high)):
        raise TypeError(f"randint draws integers between two integers, but got low={low!r} and high={high!r}")
    if high <= low:
        raise ValueError(f"randint draws from [low, high), but low={low} and high={high} leave nothing to draw")
    if high - low > 2**40 or not -(2**63) <= low < high <= 2**63:
        raise ValueError(f"randint draws evenly from 2**40 numbers at most, of 64 bits, but got [{low}, {high})")
    return _bits(key, shape, 63) % (high - low) + low


def permutation(key: Tensor, x: int | Tensor) -> Tensor:
    """``x`` in a random order along its first dim, or the numbers 0 … x − 1 in a random order.

    Args:
        key: int64 ``[2]``.
        x: how many numbers, or a tensor ``[n, …]``.

    Returns:
        int64 ``[x]``, or a tensor like ``x``.

    Raises:
        TypeError: neither.

    Example:
        >>> sorted(permutation(key(0), 5).tolist())
        [0, 1, 2, 3, 4]
    """
    if not ((isinstance(x, Tensor) and x.dim()) or (is_integer(x) and x >= 0)):
        raise TypeError(f"permutation takes a number of things or a tensor [n, …], but got {x!r}")
    n = x.shape[0] if isinstance(x, Tensor) else x
    order = torch.sort(_bits(key, n, 63), stable=True).indices
    return x[order] if isinstance(x, Tensor) else order


def _bits(key: Tensor, shape: Size, width: int) -> Tensor:
    """``width`` random bits for every number: the top of one word, or of two from 33 bits on."""
    check_key(key, single=True)
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
    if dtype not in FLOATS:
        raise TypeError(f"dtype is {dtype}, but must be one of {', '.join(map(str, FLOATS))}")
    return 1 - round(math.log2(torch.finfo(dtype).eps))


def _below(number: float, dtype: torch.dtype) -> float:
    """The greatest number of ``dtype`` that is less than ``number``, but for subnormal ones."""
    fraction, exponent = math.frexp(number)
    unit = 2.0 ** (exponent - _precision(dtype))
    if fraction == 0.5:  # a power of two, and numbers are twice as dense below it
        unit /= 2
    return (math.ceil(number / unit) - 1) * unit if number else -torch.finfo(dtype).tiny


def _shape(size: Size) -> tuple[int, ...]:
    shape = tuple(size) if isinstance(size, Sequence) else (size,)
    if not all(map(is_integer, shape)):
        raise TypeError(f"a shape is of integers, but got {list(shape)}")
    if any(n < 0 for n in shape):
        raise ValueError(f"a shape has no negative sizes, but got {list(shape)}")
    return shape
