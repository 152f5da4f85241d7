"""Nested operations on digits, whose value is the label.

    expression = digit | operation expression expression … "]"        two arguments at least, and ten at most

An operation is "[MIN", "[MAX", "[MED", the median rounded down, or "[SM", the sum modulo ten. No expression is deeper
than ten operations. Its length is drawn first, and then shared out among its arguments.

Source: Nangia and Bowman, "ListOps: a diagnostic dataset for latent tree learning" (2018).
"""

import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.lra.draws import Draws

if TYPE_CHECKING:
    from benchmarks.lra.tasks import Example, Sizes

DIGITS = "0123456789"
OPERATIONS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda x: int(statistics.median(x)),
    "[SM": lambda x: sum(x) % 10,
}
CLOSE = "]"
TOKENS = {word: i for i, word in enumerate([*DIGITS, *OPERATIONS, CLOSE], start=1)}
MOST, DEPTH = 10, 10
LEAST = 4
"""The shortest operation has two digits between its name and the bracket."""


def example(draws: Draws, sizes: "Sizes", test: bool) -> "Example":
    longest = sizes.length * 125 // 128  # 2000 tokens of 2048 places, as published
    words, value = expression(draws, draws.within(longest // 4, longest), DEPTH)
    return ([TOKENS[word] for word in words],), value


def longest(depth: int) -> int:
    """The tokens of the longest expression that is no deeper."""
    return 1 if depth == 0 else 2 + MOST * longest(depth - 1) if depth < 5 else 10**5


def expression(draws: Draws, n: int, depth: int) -> tuple[list[str], int]:
    """An expression of ``n`` tokens, and its value."""
    if n == 1:
        digit = draws.one(DIGITS)
        return [digit], int(digit)
    name = draws.one([*OPERATIONS])
    found = [expression(draws, share, depth - 1) for share in shares(draws, n - 2, longest(depth - 1))]
    words = [word for inner, _ in found for word in inner]
    return [name, *words, CLOSE], OPERATIONS[name]([value for _, value in found])


def shares(draws: Draws, n: int, most: int) -> list[int]:
    """``n`` tokens for arguments: one each for digits, and from four to ``most`` each for operations."""
    counts = [k for k in range(2, MOST + 1) if n == k or k + LEAST - 1 <= n <= k * most]
    k = draws.one(counts)
    spare = n - k
    if not spare:
        return [1] * k
    deep = draws.within(-(-spare // (most - 1)), min(k, spare // (LEAST - 1)))
    sizes = []
    for after in reversed(range(deep)):
        share = draws.within(max(LEAST - 1, spare - after * (most - 1)), min(most - 1, spare - after * (LEAST - 1)))
        sizes.append(1 + share)
        spare -= share
    return draws.some(k, [*sizes, *[1] * (k - deep)])
