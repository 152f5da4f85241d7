"""What became of each row: a line as it is measured, then JSON, a page of Markdown, and a plot."""

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.contest import BEST, LIMIT, OURS, Times, Verdict
from benchmarks.measure import MIB

PEERS = ("sdpa", "flex", "softmax")
MARKS = {True: "✓", False: "✗", None: "–"}


@dataclass(frozen=True)
class Wall:
    """Wall time with several threads, and how many cores other processes kept busy meanwhile."""

    threads: int
    times: Times
    ratio: float | None
    others: float | None


@dataclass(frozen=True)
class Result:
    """One row, measured; ``ratio`` is the best peer's time over ours, ``share`` our part of the matmul limit, ``peaks``
    the bytes that each held, ``lighter`` the least of the peers' over ours, and ``told`` what else there was to say."""

    group: str
    name: str
    times: Times = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    best: str | None = None
    ratio: float | None = None
    share: float | None = None
    goals: tuple[Verdict, ...] = ()
    unsupported: str = ""
    wall: Wall | None = None
    peaks: Mapping[str, int] = field(default_factory=dict)
    lighter: float | None = None
    told: Mapping[str, str] = field(default_factory=dict)


Page = Callable[[Sequence[Result]], Iterator[str]]


def line(result: Result, said: set[str]) -> str:
    """A row, as it is printed when it has been measured; what was ``said`` before is not said again."""
    if result.unsupported:
        return f"{result.name:<54} unsupported: {result.unsupported}"
    cells = spans(result.times)
    ratio = "" if result.ratio is None else f"{result.ratio:.2f}× {result.best}"
    notes = [t.note for t in result.times.values() if t.seconds is None and t.note not in said]
    said.update(notes)
    share = "" if result.share is None else f"{result.share:4.0%} of limit"
    first = f"{result.name:<54} {ratio:<14} {share:<13} {cells}"
    goals = "   ".join(f"{verdict(goal)} {goal.goal}" for goal in result.goals)
    second = [" " * 55 + goals] if goals else []
    if result.wall:
        wall, others = result.wall, result.wall.others
        busy = "" if others is None else f"; others used {others:.1f} cores"
        second.append(" " * 55 + f"wall, {wall.threads} threads: {spans(wall.times)}{busy}")
    if result.peaks:
        held = "  ".join(f"{name} {size(peak)}" for name, peak in result.peaks.items())
        second.append(" " * 55 + f"memory: {result.lighter or 0:.2f}×  {held}")
    second += [" " * 55 + f"{name}: {text}" for name, text in result.told.items()]
    return "\n".join([first, *second, *(" " * 55 + note for note in notes)])


def spans(times: Times) -> str:
    ran = {name: t for name, t in times.items() if t.seconds is not None}
    return "  ".join(f"{name} {span(t.seconds)}{' (one run)' if t.runs == 1 else ''}" for name, t in ran.items())


def verdict(goal: Verdict) -> str:
    value = "" if goal.value is None else f" {percent(goal)}"
    return f"{MARKS[goal.met]}{'✓' if goal.met and goal.stretch else ''}{value}"


def percent(goal: Verdict) -> str:
    return f"{goal.value:.0%}" if goal.of == LIMIT else f"{goal.value:.2f}"


def span(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 1e-4:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def size(peak: int | None) -> str:
    """Bytes, to be read."""
    return "–" if peak is None else f"{peak / MIB:.3g} MiB"


def total(results: Sequence[Result]) -> str:
    """How many goals were met, and stretched to."""
    goals = [goal for result in results for goal in result.goals if goal.met is not None]
    wide = [goal for goal in goals if goal.stretch is not None]
    met, far = sum(goal.met is True for goal in goals), sum(goal.stretch is True for goal in wide)
    behind = [result.name for result in results if result.ratio is not None and result.ratio < 1]
    text = f"{met} of {len(goals)} goals met; {far} of the {len(wide)} that have one at stretch"
    text += f"; {len(behind)} of {len(results)} rows behind a peer" if behind else "; no row behind a peer"
    refused = sum(bool(result.unsupported) for result in results)
    return text + (f"; {refused} unsupported" if refused else "")


def write(
    results: Sequence[Result], about: dict[str, Any], op: str, folder: Path, more: Page | None = None
) -> Iterator[Path]:
    """Writes everything that there is to write, one file after the other; ``more`` are tables of the op's own."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{op}-cpu"
    yield saved(stem.with_suffix(".json"), json.dumps(data(results, about), indent=1, ensure_ascii=False) + "\n")
    drawn = draw(results, about, op, stem.with_suffix(".svg"))
    yield from [stem.with_suffix(".svg")] if drawn else []
    yield saved(
        stem.with_suffix(".md"), "\n".join([*page(results, about, op, drawn), *(more(results) if more else ())]) + "\n"
    )


def data(results: Sequence[Result], about: dict[str, Any]) -> dict[str, Any]:
    """What a file of JSON holds."""
    return {"about": about, "rows": [asdict(r) for r in results]}


def saved(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def page(results: Sequence[Result], about: dict[str, Any], op: str, drawn: bool) -> Iterator[str]:
    """The page of Markdown, line by line."""
    limits = ", ".join(f"{dtype} {rate / 1e9:.0f}" for dtype, rate in about["limits"].items() if " " not in dtype)
    yield f"# {op} on a CPU"
    yield ""
    yield f"{about['cpu']}, {about['cores']} cores, {about['capability']}; torch {about['torch']},"
    yield f"Python {about['python']}, xfn {about['commit']}, backend {about['backend']}; {about['date']}."
    yield f"`{about['command']}`: {about['minutes']:.0f} minutes."
    yield ""
    yield "One thread, CPU time of the calling thread, medians of calls that took turns in one process. *best / xfn* is"
    yield "the time of the fastest peer over ours. *of limit* is our share of the matmul limit of one thread, of the"
    yield f"fastest large product that torch has, in GF/s: {limits}. A goal is met ✓, its stretch too ✓✓, or missed ✗."
    yield ""
    yield f"**{total(results)}.**"
    if about["quick"]:
        yield "This is a smoke test: its sizes and repeats are smaller than what the goals are for."
    if drawn:
        yield ""
        yield f"![The time of the fastest peer over ours, row by row]({op}-cpu.svg)"
    notes: dict[str, int] = {}
    peers = [name for name in PEERS if any(name in result.times for result in results)]
    for group, rows in groupby(results, key=lambda r: r.group):
        yield ""
        yield f"## {group.capitalize()}"
        yield ""
        yield f"| | xfn | {' | '.join([*peers, 'others'])} | best / xfn | of limit | goals |"
        yield "|---|---|" + "---|" * len(peers) + "---|---|---|---|"
        for result in rows:
            yield table_row(result, notes, peers)
    if notes:
        yield ""
        yield from (f"{number}. {note}" for note, number in notes.items())
    walls = [r for r in results if r.wall]
    if walls:
        yield from wall_table(walls)


def table_row(result: Result, notes: dict[str, int], peers: Sequence[str]) -> str:
    if result.unsupported:
        return (
            f"| {result.name} | unsupported |" + " |" * (len(peers) + 3) + f" {result.unsupported.replace('|', '¦')} |"
        )

    def cell(name: str) -> str:
        time = result.times.get(name)
        if time is None:
            return ""
        mark = f" ({notes.setdefault(time.note, len(notes) + 1)})" if time.note else ""
        held = f", {size(result.peaks[name])}" if name in result.peaks else ""
        return ("**{}**" if name == result.best else "{}").format(span(time.seconds)) + held + mark

    others = "; ".join(f"{name} {cell(name)}" for name in result.times if name not in (OURS, *peers))
    ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
    ratio += "" if result.lighter is None else f"; memory {result.lighter:.2f}"
    share = "" if result.share is None else f"{result.share:.0%}"
    goals = "; ".join(f"{verdict(goal)} ({goal.goal})" for goal in result.goals)
    cells = [result.name, cell(OURS), *(cell(name) for name in peers), others, ratio, share, goals]
    return "| " + " | ".join(cells) + " |"


def wall_table(results: Sequence[Result]) -> Iterator[str]:
    threads = {r.wall.threads for r in results if r.wall}
    yield ""
    yield f"## Wall time with {', '.join(map(str, threads))} threads, for the record"
    yield ""
    yield "Other processes disturb it; the last column is how many cores they kept busy meanwhile."
    yield ""
    yield f"| | xfn | {' | '.join(PEERS)} | best / xfn | others |"
    yield "|---|---|" + "---|" * len(PEERS) + "---|---|"
    for result in results:
        assert result.wall
        times, others = result.wall.times, result.wall.others
        cells = [span(times[name].seconds) if name in times else "" for name in (OURS, *PEERS)]
        ratio = "" if result.wall.ratio is None else f"{result.wall.ratio:.2f}"
        yield f"| {result.name} | {' | '.join(cells)} | {ratio} | {'' if others is None else f'{others:.1f}'} |"


def can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def draw(results: Sequence[Result], about: dict[str, Any], op: str, path: Path) -> bool:
    """The ratio of each row as a bar, and its goal as a tick; False where there is no matplotlib."""
    rows = [r for r in results if r.ratio is not None]
    if not can_draw() or not rows:
        return False
    matplotlib: Any = importlib.import_module("matplotlib")
    figures: Any = importlib.import_module("matplotlib.figure")
    goals = [[goal.bound for goal in r.goals if goal.of == BEST] for r in rows]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": op, "font.size": 7}):
        figure = figures.Figure(figsize=(8, 0.6 + 0.16 * len(rows)), layout="constrained")
        axes = figure.subplots()
        places = range(len(rows))
        wanted = [max(found, default=1.0) for found in goals]
        colours = ["tab:green" if (r.ratio or 0) >= w else "tab:red" for r, w in zip(rows, wanted, strict=True)]
        axes.barh(places, [(r.ratio or 0) - 1 for r in rows], left=1, color=colours, height=0.7, alpha=0.7)
        marks = [(max(g), place) for g, place in zip(goals, places, strict=True) if g]
        if marks:
            axes.plot(*zip(*marks, strict=True), "k|", markersize=6, label="goal")
            axes.legend(loc="lower right")
        axes.axvline(1.0, color="black", linewidth=0.6)
        axes.set_yticks(places, [r.name for r in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}×")
        axes.grid(axis="x", linewidth=0.3)
        axes.set_xlabel(f"time of the fastest peer / time of xfn, one thread; torch {about['torch']}, {about['date']}")
        figure.savefig(path, metadata={"Date": None})
    return True
