"""What ``python -m benchmarks.run sparsity`` times: the rows, in the order in which they run."""

from collections.abc import Iterator

from benchmarks.attention.problem import Settings
from benchmarks.contest import Row
from benchmarks.sparsity import blocks, entries


def rows(settings: Settings) -> Iterator[Row]:
    yield from blocks.rows(settings)
    yield from entries.rows(settings)
