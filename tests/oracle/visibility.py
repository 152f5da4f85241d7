"""Who sees whom, told query by query and key by key, in integers; nothing of ``xfn.bias`` is used for it."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Rule = Callable[[int, int], bool]
Local = Callable[[int, int, int, int], bool]
"""Query a of m and key b of n, in one segment."""

inside: Local = lambda a, b, m, n: True
past: Local = lambda a, b, m, n: b <= a
past_from_the_end: Local = lambda a, b, m, n: b - n <= a - m


def everyone(m: int, n: int) -> bool:
    return True


def sees(M: int, N: int, rule: Rule) -> Bools:
    return np.array([[rule(m, n) for n in range(N)] for m in range(M)], np.bool_).reshape(M, N)


def blocks(M: int, N: int, queries: Sequence[int], starts: Sequence[int], keys: Sequence[int], rule: Local) -> Bools:
    """Query a of the m in segment i sees key b of its n, which begin at ``starts[i]``, where ``rule(a, b, m, n)``."""
    found, first = np.zeros((M, N), np.bool_), 0
    for count, start, size in zip(queries, starts, keys, strict=True):
        for a in range(count):
            for b in range(size):
                found[first + a, start + b] = rule(a, b, count, size)
        first += count
    return found


def scattered(seed: int, *shape: int) -> Bools:
    return np.random.default_rng(seed).random(shape) < 0.6


def distance(M: int, N: int) -> npt.NDArray[np.float64]:
    return np.array([[abs(m - n) for n in range(N)] for m in range(M)], np.float64)
