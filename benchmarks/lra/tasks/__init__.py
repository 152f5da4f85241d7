"""What is learned: each task makes an example of random numbers, and batches of examples are made here.

Tokens are numbers from 1 on, for 0 pads what is shorter than the longest. A batch is a function of its key.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from benchmarks.lra.draws import Draws
from benchmarks.lra.tasks import documents, image, listops, pathfinder
from xfn import random

PAD = 0
Example = tuple[tuple[list[int], ...], int]
"""One sequence of tokens or a pair of them, and the label."""


class Sizes(Protocol):
    """What tasks read of the settings."""

    @property
    def length(self) -> int: ...

    @property
    def contour(self) -> int: ...


TASKS: dict[str, Callable[[Draws, Sizes, bool], Example]] = {
    "listops": listops.example,
    "text": documents.text,
    "retrieval": documents.retrieval,
    "image": image.example,
    "pathfinder32-curv_baseline": pathfinder.example,
    "pathfinder32-curv_contour_length_9": pathfinder.example,
    "pathfinder32-curv_contour_length_14": pathfinder.example,
}
"""Of numbers, settings and whether it is for the test, an example."""
PAIRS = ("retrieval",)


class Batch(NamedTuple):
    """``ids [B, M]``, or ``[B, 2, M]`` of pairs, how long each is, and ``labels [B]``."""

    ids: Tensor
    lengths: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(*(t.to(device) for t in self))


def batch(task: str, sizes: Sizes, key: Tensor, B: int, *, test: bool = False) -> Batch:
    """``B`` examples, each of a key of its own."""
    keys = random.fold_in(random.fold_in(key, int(test)), torch.arange(B))
    made = [TASKS[task](Draws(each), sizes, test) for each in keys]
    ids = torch.tensor([[[*row, *[PAD] * (sizes.length - len(row))] for row in rows] for rows, _ in made])
    lengths = torch.tensor([[len(row) for row in rows] for rows, _ in made])
    labels = torch.tensor([label for _, label in made])
    return Batch(ids, lengths, labels) if task in PAIRS else Batch(ids[:, 0], lengths[:, 0], labels)
