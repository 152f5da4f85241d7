"""A choice of the tests, which ``--brief`` makes: of those that differ in one parameter alone, one, by turns.

A law says so, ``@pytest.mark.turns("dtype", "case")``: each case is asked in one dtype, and the next case in the next,
so that whatever else there is, member or backend, meets every case and every dtype, though not every pair of them. What
is marked ``whole`` is left out.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import pytest

TURN = pytest.StashKey[int]()
"""Which turn of its law a chosen test is."""


def chosen(items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Of all tests those that are asked, and the rest."""
    kept: set[pytest.Item] = set()
    lines: defaultdict[Hashable, defaultdict[str, list[pytest.Function]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        mark = item.get_closest_marker("turns")
        if item.get_closest_marker("whole") is not None:
            continue
        if isinstance(item, pytest.Function) and mark is not None:
            turning, over = mark.args
            given = {name: repr(value) for name, value in item.callspec.params.items() if name != turning}
            lines[item.function, *(value for name, value in given.items() if name != over)][given[over]].append(item)
        else:
            kept.add(item)
    for first, line in enumerate(lines.values()):
        for turn, alike in enumerate(line.values()):
            item = alike[(first + turn) % len(alike)]
            item.stash[TURN] = turn
            kept.add(item)
    return [item for item in items if item in kept], [item for item in items if item not in kept]
