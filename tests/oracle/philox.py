"""Philox-4x32 and what is drawn with it, in numpy, from the paper and from the texts of ``xfn``."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]


def philox(counter: Sequence[int] | Words, key: Sequence[int] | Words, rounds: int) -> Words:
    """Four words ``[..., 4]`` of counters ``[..., 4]`` and keys ``[..., 2]``.

    Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 4.3.
    """
    low = np.uint64(2**32 - 1)
    half = np.uint64(32)
    right0, left0, right1, left1 = np.moveaxis(np.asarray(counter, np.uint64), -1, 0)
    key0, key1 = np.moveaxis(np.asarray(key, np.uint64), -1, 0)
    for i in range(rounds):
        step = np.uint64(i)
        round0, round1 = (key0 + step * np.uint64(0x9E3779B9)) & low, (key1 + step * np.uint64(0xBB67AE85)) & low
        product0, product1 = right0 * np.uint64(0xD2511F53), right1 * np.uint64(0xCD9E8D57)
        right0, left0 = (product1 >> half) ^ left0 ^ round0, product1 & low
        right1, left1 = (product0 >> half) ^ left1 ^ round1, product0 & low
    return np.stack(np.broadcast_arrays(right0, left0, right1, left1), -1)


def child(key: tuple[int, int], number: int) -> tuple[int, int]:
    """``fold_in(key, number)``: the first two words at the counter (number low, number high, 0, 1)."""
    first, second, *_ = philox([number % 2**32, number >> 32, 0, 1], key, 10)
    return int(first), int(second)


def kept(key: tuple[int, int], p: float, heads: int, queries: int, keys: int) -> npt.NDArray[np.bool_]:
    """Which weights ``[H, M, N]`` survive: lane n % 8 at the counter (n // 8, m, h, 0) is at least 65536 p."""

    def lane(h: int, m: int, n: int) -> int:
        words = philox([n // 8, m, h, 0], key, 7)
        return int(words[n % 8 // 2]) >> 16 * (n % 2) & 0xFFFF

    survives = [
        [[lane(h, m, n) >= round(p * 65536) for n in range(keys)] for m in range(queries)] for h in range(heads)
    ]
    return np.array(survives, np.bool_)
