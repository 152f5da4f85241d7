"""``python -m benchmarks.run attention``: every row of an op's table, timed against its peers side by side.

The main number is the CPU time of the calling thread with one thread, which repeats on a busy machine; wall time with
more threads can be taken beside it. Without --out, a whole run is written to docs/benchmarks and a part of one is
only printed. ``--compare`` sets a run beside an earlier one, or two earlier ones beside each other.
"""

import argparse
import importlib
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import compare, contest, machine, report
from benchmarks.attention.problem import Settings
from benchmarks.contest import BEST, LIMIT, OURS, Contest, Goal, Row, Verdict
from benchmarks.report import Result, Wall
from xfn import Unsupported

HERE = Path(__file__).parent
OPS = sorted(p.parent.name for p in HERE.glob("*/__init__.py") if not p.with_name("__main__.py").exists())
ALL = "all"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n\n")[1])
    parser.add_argument("op", nargs="?", choices=[*OPS, ALL])
    parser.add_argument("--quick", action="store_true", help="smaller sizes and few repeats: a smoke test")
    parser.add_argument("--only", metavar="REGEX", default="", help="the rows whose name it finds")
    parser.add_argument("--list", action="store_true", help="print the names of the rows, and stop")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="also wall time with N threads")
    parser.add_argument("--backend", help="the backend of our calls; by default the first that can")
    parser.add_argument("--no-flex", action="store_true", help="without compiled flex_attention: seconds less per row")
    parser.add_argument("--budget", type=float, metavar="S", help="seconds of repeats per row; by default 1.5")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write JSON, Markdown and a plot")
    parser.add_argument("--compare", type=Path, nargs="+", metavar="JSON", help="an earlier run; without an op, two")
    parser.add_argument("--fail-if-regression", type=float, metavar="SHARE", help="exit with 1 where a row lost more")
    asked = parser.parse_args(given)
    files = len(asked.compare or ())
    if asked.op is None and files != 2:
        parser.error("write an op, or --compare with two runs")
    if asked.op is not None and (files > 1 or (files and asked.op == ALL)):
        parser.error("one table is compared with one earlier run of it")
    if asked.fail_if_regression is not None and not files:
        parser.error("--fail-if-regression needs --compare")
    return asked


def main(given: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a row was to be as fast as it had been, and is not."""
    asked = arguments(given)
    earlier = [compare.read(path) for path in asked.compare or ()]
    command = f"python -m benchmarks.run {shlex.join(sys.argv[1:] if given is None else given)}"
    if asked.op is None:
        before, after = earlier
        return compare.told(before, after, asked.fail_if_regression)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    limits = {} if asked.list else machine.matmul_limits()
    for op in OPS if asked.op == ALL else [asked.op]:
        run = table(op, asked, limits, command)
    return compare.told(earlier[0], run, asked.fail_if_regression) if earlier and run else 0


def table(op: str, asked: argparse.Namespace, limits: dict[str, float], command: str) -> compare.Run | None:
    """Measures the rows of a table, and returns what a file of them holds."""
    began = time.monotonic()
    module = importlib.import_module(f"benchmarks.{op}")
    rows: Callable[[Settings], Iterator[Row]] = module.rows
    chosen = [
        row
        for row in rows(Settings(asked.quick, not asked.no_flex, asked.backend, limits))
        if re.search(asked.only, row.name)
    ]
    if asked.list or not chosen:
        print("\n".join(row.name for row in chosen) or f"no row is called {asked.only!r}; --list names them")
        return None

    about = machine.describe() | {
        "backend": asked.backend or "automatic",
        "command": command,
        "quick": asked.quick,
        "limits": limits,
    }
    print(f"{about['cpu']}; torch {about['torch']}; one thread; {about['date']}")
    print("matmul limit, GF/s:", ", ".join(f"{dtype} {rate / 1e9:.0f}" for dtype, rate in limits.items()))
    budget, least = asked.budget or (0.2 if asked.quick else 1.5), 2 if asked.quick else 3
    results: list[Result] = []
    said: set[str] = set()
    try:
        for row in chosen:
            results.append(measured(row, limits, budget, least, asked.threads))
            print(report.line(results[-1], said), flush=True)
    except KeyboardInterrupt:
        print("interrupted")
    about["minutes"] = (time.monotonic() - began) / 60
    print(f"{report.total(results)}; {about['minutes']:.1f} minutes")

    whole = len(results) == len(chosen) and not (asked.quick or asked.only)
    folder = asked.out or (HERE.parent / "docs" / "benchmarks" if whole else None)
    if folder is None:
        print("a part of the rows is only printed; --out DIR writes it")
        return report.data(results, about)
    for path in report.write(results, about, op, folder, getattr(module, "page", None)):
        print(f"wrote {path}")
    if not report.can_draw():
        print("there is no plot: matplotlib is not installed")
    return report.data(results, about)


def measured(row: Row, limits: dict[str, float], budget: float, least: int, threads: int) -> Result:
    """The row with one thread and, if there are to be more, its wall time with them."""
    made = row.make()
    try:
        times = contest.race(made, time.thread_time, budget, least)
    except Unsupported as reason:
        return Result(row.group, row.name, unsupported=" ".join(str(reason).split()))
    best = contest.best(made, times)
    ours = times[OURS].seconds
    assert ours
    share = row.flops / ours / limits[machine.name(row.dtype)] if row.flops else None
    seconds = {name: taken.seconds for name, taken in times.items()} | {BEST: times[best].seconds if best else None}
    peaks = contest.peaks(made, times) if row.memory else {}
    lightest = contest.least(made, peaks)
    held = {**peaks, BEST: peaks[lightest]} if lightest else peaks

    def verdict(goal: Goal) -> Verdict:
        found: Mapping[str, float | None] = held if goal.memory else seconds
        return contest.judge(goal, found[OURS] or 0.0, found.get(goal.of), share)

    assert LIMIT not in seconds
    return Result(
        row.group,
        row.name,
        times,
        tuple(made.beside),
        best,
        ratio(ours, seconds[BEST]),
        share,
        tuple(map(verdict, row.goals)),
        wall=walled(contest.restricted(made, times), budget, least, threads) if threads > 1 else None,
        peaks=peaks,
        lighter=ratio(peaks.get(OURS), held.get(BEST)),
        told=dict(made.tell()),
    )


def walled(made: Contest, budget: float, least: int, threads: int) -> Wall:
    torch.set_num_threads(threads)
    others = machine.others_since()
    try:
        times = contest.race(made, time.perf_counter, budget, least, drop=False)
    finally:
        torch.set_num_threads(1)
    best = contest.best(made, times)
    return Wall(threads, times, ratio(times[OURS].seconds, times[best].seconds if best else None), others())


def ratio(ours: float | None, other: float | None) -> float | None:
    return other / ours if ours and other else None


if __name__ == "__main__":
    sys.exit(main())
