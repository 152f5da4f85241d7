"""Two long dashed paths among short ones, pixel by pixel: do the two bright dots end the same one?

Dots end one long path, or one each of the two. A path is lit but for each third of its pixels, so lit neighbours
on a path are two pixels apart at most, and paths keep three pixels from one another: what is connected by steps of up
to two pixels is a path, and the label is whether the dots are connected.

After Linsley et al., "Learning long-range spatial dependencies with horizontal gated recurrent units" (2018).
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from benchmarks.lra.draws import Draws

if TYPE_CHECKING:
    from benchmarks.lra.tasks import Example, Sizes

BLACK, LIT, DOT = 1, 128, 256
DASH = 3
"""Pixels of a dash, with the dark one behind it."""
APART = 3
BEND = 0.5
"""The most by which a path turns at a pixel, in radians."""
TRIES = 50
TURNS = 3
"""How many turns there are to a pixel, of which some lead nowhere."""
Cell = tuple[int, int]


def example(draws: Draws, sizes: "Sizes", test: bool) -> "Example":
    side, long, label = math.isqrt(sizes.length), DASH * sizes.contour, draws.within(0, 1)
    first, second = long_paths(draws, side, long)
    paths = [first, second]
    for _ in range(side // 4):
        if path := walk(draws, side, max(2, long // 3), around(cell for path in paths for cell in path)):
            paths.append(path)
    tokens = [BLACK] * side**2
    for path in paths:
        for i, (y, x) in enumerate(path):
            if i % DASH < DASH - 1 or i == len(path) - 1:
                tokens[y * side + x] = LIT
    for y, x in (first[0], first[-1] if label else draws.one((second[0], second[-1]))):
        tokens[y * side + x] = DOT
    return (tokens,), label


def long_paths(draws: Draws, side: int, n: int) -> tuple[list[Cell], list[Cell]]:
    """Two that keep apart, each with ends that do, too."""
    while True:
        first = path(draws, side, n, set())
        second = path(draws, side, n, around(first)) if first else []
        if second:
            return first, second


def path(draws: Draws, side: int, n: int, taken: set[Cell]) -> list[Cell]:
    """``n`` pixels with ends that keep apart, or nothing where none was found."""
    for _ in range(TRIES):
        found = walk(draws, side, n, taken)
        if found and found[-1] not in around(found[:1]):
            return found
    return []


def walk(draws: Draws, side: int, n: int, taken: set[Cell]) -> list[Cell]:
    """``n`` pixels, each beside the one before, or nothing where they would leave the image or meet what is taken."""
    y, x, angle = side * draws.unit(), side * draws.unit(), 2 * math.pi * draws.unit()
    cells = [cell] if (cell := (math.floor(y), math.floor(x))) not in taken else []
    for _ in range(TURNS * n if cells else 0):
        angle += BEND * (2 * draws.unit() - 1)
        down, across = y + math.sin(angle), x + math.cos(angle)
        cell = math.floor(down), math.floor(across)
        if min(cell) >= 0 and max(cell) < side and cell not in taken:
            y, x = down, across
            cells += [cell] if cell != cells[-1] else []
            if len(cells) == n:
                return cells
    return []


def around(cells: Iterable[Cell]) -> set[Cell]:
    """All that is nearer than ``APART``."""
    near = range(1 - APART, APART)
    return {(y + down, x + across) for y, x in cells for down in near for across in near}
