"""Two runs of a table, row by row: how many times as long ours takes as it did, and whether that is chance.

    ratio = (ours after / ours before) / (peers after / peers before)

Medians, and of peers the median ratio of those that both runs timed in full: what peers take longer as well is the
machine's doing. The spread of a time is twice what lies between the median and the least, over the root of the number
of samples; the spread of a ratio is that of its four times together, as of independent errors. A row is slower by a
share where the ratio is, less its spread; and heavier where ours holds more memory by that share.
"""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contest import OURS

Run = Mapping[str, Any]
"""What a run writes as JSON."""


@dataclass(frozen=True)
class Change:
    """Of one row; ``drift`` is what became of the peers, where there are some, and ``memory`` the ratio of bytes."""

    name: str
    ratio: float
    spread: float
    drift: float | None = None
    memory: float | None = None
    unsupported: bool = False

    def lost(self, share: float) -> bool:
        """Whether it is slower, or heavier, by more than a share, or not supported any more."""
        slower = self.ratio - self.spread > 1 + share
        return slower or self.unsupported or (self.memory is not None and self.memory > 1 + share)

    def __str__(self) -> str:
        if self.unsupported:
            return f"{self.name:<54} was supported, and is no more"
        drift = "" if self.drift is None else f"   peers {self.drift:.2f}×"
        memory = "" if self.memory is None else f"   memory {self.memory:.2f}×"
        return f"{self.name:<54} {self.ratio:.2f}× ± {self.spread:.2f}{drift}{memory}"


def read(path: Path) -> Run:
    found: Run = json.loads(path.read_text())
    if not {"about", "rows"} <= set(found):
        raise ValueError(f"{path} is not what a run of benchmarks.run has written")
    return found


def changes(before: Run, after: Run) -> Iterator[Change]:
    """Of the rows that ours was timed in before, and that there are after."""
    earlier = {row["name"]: row for row in before["rows"]}
    for row in after["rows"]:
        old = earlier.get(row["name"], {})
        if not seconds(old, OURS):
            continue
        if not seconds(row, OURS):
            yield Change(row["name"], math.nan, 0.0, unsupported=True)
            continue
        ratio, errors = grown(old, row, OURS), [spread(old, OURS), spread(row, OURS)]
        peers = [name for name in row["times"] if name != OURS and all(in_full(r, name) for r in (old, row))]
        drift = None
        if peers:
            ratios = {name: grown(old, row, name) for name in peers}
            drift = statistics.median(ratios.values())
            nearest = min(peers, key=lambda name: abs(ratios[name] - drift))
            errors += [spread(old, nearest), spread(row, nearest)]
        ratio /= drift or 1.0
        held = [r.get("peaks", {}).get(OURS) for r in (old, row)]
        memory = held[1] / held[0] if all(held) else None
        yield Change(row["name"], ratio, ratio * math.hypot(*errors), drift, memory)


def seconds(row: Run, name: str) -> float | None:
    return row.get("times", {}).get(name, {}).get("seconds")  # type: ignore[no-any-return]


def in_full(row: Run, name: str) -> bool:
    return bool(row.get("times", {}).get(name, {}).get("runs", 0) > 1)


def grown(before: Run, after: Run, name: str) -> float:
    return float(after["times"][name]["seconds"] / before["times"][name]["seconds"])


def spread(row: Run, name: str) -> float:
    """A time's, as a part of it."""
    time = row["times"][name]
    above = 1.0 - float(time["least"] or time["seconds"]) / float(time["seconds"])
    return 2.0 * above / math.sqrt(time["runs"] or 1)


def told(before: Run, after: Run, share: float | None) -> int:
    """Prints what has changed; 1 where a row has lost more than a share."""
    for title, run in (("before", before), ("after", after)):
        about = run["about"]
        print(f"{title:<7} xfn {about['commit']}, torch {about['torch']}, {about['cpu']}; {about['date']}")
    found = [*changes(before, after)]
    if not found:
        print("no row of one is a row of the other")
        return 1
    limit = 0.0 if share is None else share
    for change in found:
        print(f"{change}{'   ✗' if change.lost(limit) else ''}")
    print(summary(found, limit, len(before["rows"])))
    return int(share is not None and any(change.lost(share) for change in found))


def summary(found: Sequence[Change], share: float, rows: int) -> str:
    timed = [change.ratio for change in found if not change.unsupported]
    middle = f"median {statistics.median(timed):.2f}×; " if timed else ""
    missing = f"; {rows - len(found)} rows of before are not compared" if rows > len(found) else ""
    lost = sum(change.lost(share) for change in found)
    return (
        f"{middle}{lost} of {len(found)} rows slower, heavier or lost by more than {share:.0%} and the spread{missing}"
    )
