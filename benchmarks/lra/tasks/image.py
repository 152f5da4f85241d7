"""Handwritten digits, enlarged and put anywhere on a black square, pixel by pixel: which digit is it?

The digits are scikit-learn's: 1797 of 8 × 8 pixels in 17 shades. One of five is for the test.
"""

import importlib
import math
from functools import cache
from typing import TYPE_CHECKING, Any

from benchmarks.lra.draws import Draws

if TYPE_CHECKING:
    from benchmarks.lra.tasks import Example, Sizes

SIDE, SHADES = 8, 17
EACH = 5


@cache
def digits(test: bool) -> list[tuple[list[list[int]], int]]:
    """One side's pictures and what they show."""
    try:
        datasets: Any = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ImportError("image shows scikit-learn's digits, which is not installed: pip install xfn[lra]") from error
    found = datasets.load_digits()
    pictures = zip(found.images.astype(int).tolist(), found.target.tolist(), strict=True)
    return [each for i, each in enumerate(pictures) if (i % EACH == EACH - 1) == test]


def example(draws: Draws, sizes: "Sizes", test: bool) -> "Example":
    side = math.isqrt(sizes.length)
    picture, label = draws.one(digits(test))
    zoom = draws.within(max(1, side // 16), side // SIDE)
    down, across = (draws.within(0, side - zoom * SIDE) for _ in range(2))
    tokens = [1] * side**2
    for y in range(zoom * SIDE):
        for x in range(zoom * SIDE):
            tokens[(down + y) * side + across + x] = 1 + picture[y // zoom][x // zoom] * (255 // (SHADES - 1))
    return (tokens,), label
