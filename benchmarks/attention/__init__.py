"""What ``python -m benchmarks.run attention`` times: the rows, in the order in which they run."""

from collections.abc import Iterator

from benchmarks.attention import forms, grid, transforms
from benchmarks.attention.problem import Settings
from benchmarks.contest import Row


def rows(settings: Settings) -> Iterator[Row]:
    yield from grid.rows(settings)
    yield from transforms.rows(settings)
    yield from forms.rows(settings)
