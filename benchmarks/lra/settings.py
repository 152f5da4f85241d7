"""What is trained, and how: the tables of a JSON file, one over the other."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from benchmarks.lra.tasks import TASKS

FILE = Path(__file__).with_name("settings.json")
SHORT = {"pathfinder": "pathfinder32-curv_baseline"}
ALL = ("listops", "text", "retrieval", "image", SHORT["pathfinder"])


@dataclass(frozen=True)
class Settings:
    """One attention on one task.

    Attributes:
        options: the fields of the attention's part.
        length, vocab, classes: M, with padding; how many tokens and labels there are.
        width, heads, layers, multiplier, reversible: of the encoder; the multiplier is that of its feed-forward.
        pool: ``"mean"``, over all places, or ``"cls"``, a token put before all others.
        dropout: of embeddings, of attention and of feed-forwards.
        steps, batch, accumulate: updates, examples in a batch, and batches in an update.
        rate, warmup: the highest learning rate, and the step at which it is reached.
        tests: examples of the test.
        contour: dashes of a long path, for pathfinder.
    """

    task: str
    attention: str
    length: int
    vocab: int
    classes: int
    width: int
    heads: int
    layers: int
    multiplier: int
    reversible: bool
    pool: str
    dropout: float
    steps: int
    batch: int
    accumulate: int
    rate: float
    warmup: int
    tests: int
    contour: int
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pool not in ("mean", "cls"):
            raise ValueError(f"pool is {self.pool!r}, but there are 'mean' and 'cls'")


def read(
    task: str, attention: str, *, quick: bool = False, file: Path = FILE, steps: int | None = None, seed: int = 0
) -> Settings:
    """The settings of one attention on one task.

    Args:
        task: one of ``TASKS``, or a short name.
        quick: the small ones over the others.
        file: tables as in ``settings.json``.
        steps: instead of those of the task, with as large a part of them for warming up.
    """
    task = SHORT.get(task, task)
    if task not in TASKS:
        raise KeyError(f"no task is called {task!r}; there are {[*TASKS, *SHORT]}")
    tables = json.loads(file.read_text())
    levels = [tables, tables.get("quick", {})] if quick else [tables]
    found = joined(part for level in levels for part in (level.get("common"), level.get("tasks", {}).get(task)))
    options = joined(level.get("attention", {}).get(attention) for level in levels)
    if unknown := sorted(set(found) - {f.name for f in fields(Settings)}):
        raise TypeError(f"{file} has {unknown} for {task}; settings are {[f.name for f in fields(Settings)]}")
    if steps is not None:
        found |= {"steps": steps, "warmup": max(1, steps * found["warmup"] // found["steps"])}
    return Settings(**{"task": task, "attention": attention, "options": options, "seed": seed, **found})


def joined(tables: Any) -> dict[str, Any]:
    """One over the other; those that are missing say nothing."""
    return {name: value for table in tables if table for name, value in table.items()}


def named(given: str, every: Sequence[str]) -> list[str]:
    """Names between commas, or ``all``."""
    return [*every] if given == "all" else [name for name in given.split(",") if name]
