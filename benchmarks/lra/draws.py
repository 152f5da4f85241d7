"""Random numbers for plain Python: one after the other, all of one key."""

import math
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

from xfn import random

T = TypeVar("T")
PAGE = 512


class Draws:
    """The numbers of a key, in their order."""

    def __init__(self, key: Tensor) -> None:
        self.key, self.page = key, 0
        self.left: list[float] = []

    def unit(self) -> float:
        """In [0, 1)."""
        if not self.left:
            self.left = random.uniform(random.fold_in(self.key, self.page), (PAGE,)).tolist()
            self.page += 1
        return self.left.pop()

    def within(self, least: int, most: int) -> int:
        """An integer, both ends included."""
        return least + math.floor(self.unit() * (most - least + 1))

    def one(self, of: Sequence[T]) -> T:
        return of[self.within(0, len(of) - 1)]

    def some(self, n: int, of: Sequence[T]) -> list[T]:
        """``n`` of them in any order, none twice."""
        places = sorted(range(len(of)), key=[self.unit() for _ in of].__getitem__)
        return [of[place] for place in places[:n]]
