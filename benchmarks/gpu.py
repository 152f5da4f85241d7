"""``python -m benchmarks.gpu``: the kernels on a GPU, right first, and then against torch's own, row by row.

A row's calls are captured as graphs where they can be, and take turns over inputs that take turns; what is told are
medians. Each peer may be missing, and says why. What was measured is written behind every row, so that nothing is lost
where time runs out. ``--dry`` runs all of it on a CPU, on tiny sizes, to see that it runs.
"""

import argparse
import gc
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, func

import xfn
from benchmarks import contest, gpu_calls, gpu_rows, machine
from benchmarks.contest import OURS, Call, Contest, Times, Verdict
from benchmarks.gpu_calls import Row, Turns, Where
from benchmarks.measure import peak_bytes
from benchmarks.report import span
from xfn import Unsupported, bias, layout

FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks"
PEERS = ("flash", "cudnn", "efficient", "flex", "varlen", "math")
MARKS = {True: "✓", False: "✗", None: "–"}


@dataclass
class Check:
    """Whether value, gradient and tangent are right: their error against float64, what torch's own plain path errs,
    and whether two runs gave the same bits."""

    name: str
    error: float
    plain: float
    repeats: bool
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.repeats and self.error <= 3 * self.plain + 0.01


@dataclass
class Result:
    """A row, measured: seconds, or bytes."""

    group: str
    name: str
    times: Times = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    rate: float | None = None
    bytes: int | None = None
    note: str = ""


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--dry", action="store_true", help="on a CPU, on tiny sizes: a test of this program")
    parser.add_argument("--only", metavar="REGEX", default="", help="the rows whose group or name it finds")
    parser.add_argument("--minutes", type=float, default=8.0, help="when no further row is begun; by default 8")
    parser.add_argument("--budget", type=float, default=1.0, metavar="S", help="seconds of repeats per row")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="where to write JSON and Markdown")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    asked, began = arguments(given), time.monotonic()
    if not asked.dry and not torch.cuda.is_available():
        print("there is no GPU here that torch can use: --dry runs the same on a CPU")
        return 2
    warnings.simplefilter("ignore")
    where = Where("cpu" if asked.dry else "cuda", asked.dry)
    about = described(where)
    print(f"{about['device']}; torch {about['torch']}; copies {about['copy'] / 1e12:.2f} TB/s; {about['date']}")
    checks = list(checked(where))
    results: list[Result] = []
    clock = time.perf_counter if where.dry else synchronized
    for row in gpu_rows.rows(where):
        if not re.search(asked.only, f"{row.group} {row.name}"):
            continue
        late = time.monotonic() - began > 60 * asked.minutes
        note = f"not begun: {asked.minutes:g} minutes are over"
        found = Result(row.group, row.name, note=note) if late else measured(row, where, clock, asked.budget)
        results.append(found)
        print(told(found), flush=True)
        write(asked.out, about, checks, results)
        clean(where)
    return 0 if all(check.passed for check in checks) else 1


def described(where: Where) -> dict[str, Any]:
    device = machine.model() if where.dry else torch.cuda.get_device_name()
    copy = copied(where)
    gpu_calls.copied[where.device] = copy
    return machine.describe() | {"device": device, "cuda": torch.version.cuda, "copy": copy, "dry": where.dry}


def copied(where: Where) -> float:
    """Bytes a second that a large copy reads and writes."""
    x = torch.ones((1 if where.dry else 1024) << 20, dtype=torch.uint8, device=where.device)
    y, clock = torch.empty_like(x), time.perf_counter if where.dry else synchronized
    taken = []
    for _ in range(5):
        start = clock()
        y.copy_(x)
        taken.append(clock() - start)
    return 2.0 * x.numel() / min(taken)


def synchronized() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def clean(where: Where) -> None:
    """Gives the memory of a row back; of a dry run's there is too little to look for."""
    if where.device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


# Right first.


def checked(where: Where) -> Iterator[Check]:
    S, H, D = (64, 2, 16) if where.dry else (1024, 4, 64)
    half, dtypes = torch.bfloat16, (torch.bfloat16, torch.float16, torch.float32)
    tiles = layout.causal(S, block=32).to(where.device)

    def masked(mask: bias.Bias | None) -> Callable[..., Any]:
        return lambda q, k, v, backend: xfn.attention_with_lse(q, k, v, mask, backend=backend)

    over = lambda *x, backend: xfn.blocksparse_attention_with_lse(tiles, *x, backend=backend)
    calls: tuple[tuple[str, Callable[..., Any], int, torch.dtype], ...] = (
        *(("dense", masked(None), width, half) for width in (D, 2 * D)),
        *(("causal", masked(bias.causal()), D, dtype) for dtype in dtypes),
        ("causal", masked(bias.causal()), 2 * D, half),
        ("window", masked(bias.local(S // 8, 0)), D, half),
        ("layout", over, 2 * D, half),
    )
    for name, call, width, dtype in calls:
        made = check(f"{name} {machine.name(dtype)} {S}x{width}", call, dtype, (2, S, H, width), where)
        errors = f"error {made.error:.1e}, plain {made.plain:.1e} {made.note}"
        print(f"{MARKS[made.passed]} {made.name:<28} {errors}", flush=True)
        yield made


def check(name: str, call: Callable[..., Any], dtype: torch.dtype, shape: tuple[int, ...], where: Where) -> Check:
    generator = torch.Generator().manual_seed(0)
    ts = [torch.randn(shape, generator=generator).to(where.device, dtype) for _ in range(4)]

    def family(backend: str | None, to: torch.dtype) -> list[Tensor]:
        q, k, v, d = (t.to(to) for t in ts)
        f = lambda *x: call(*x, backend=backend)
        y, pull = func.vjp(f, q, k, v)[:2]
        return [*y, *pull((d, torch.zeros_like(y[1]))), *func.jvp(f, (q, k, v), (d, d, d))[1]]

    try:
        exact, plain = family("reference", torch.float64), family("reference", dtype)
        got, again = family(None, dtype), family(None, dtype)
    except Exception as raised:
        return Check(name, float("inf"), 0.0, False, contest.brief(raised))
    repeats = all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    error, own = (contest.distance(found, exact) for found in (got, plain))
    return Check(name, error, own, repeats, "" if repeats else "bits differ")


# Then fast.


def measured(row: Row, where: Where, clock: Callable[[], float], budget: float) -> Result:
    found = Result(row.group, row.name)
    others: dict[str, float | None]
    try:
        made = row.make()
        if row.memory:
            made.ours.run()
            found.bytes = peak_bytes(made.ours.run, where.device)
            ours, others = float(found.bytes), {}
        else:
            found.times = contest.race(made, clock, 0.01 if where.dry else budget, 1 if where.dry else 3)
            noted(made, found.times)
            others = {name: t.seconds for name, t in found.times.items()}
            ours = others[OURS] or float("nan")
    except Unsupported as reason:
        found.note = f"unsupported: {' '.join(str(reason).split())}"
        return found
    except Exception as error:
        found.note = f"failed: {contest.brief(error)}"
        return found
    found.verdicts = [contest.judge(aim, ours, {**others, **row.units}.get(aim.of), None) for aim in row.aims]
    found.rate = row.units["TFLOP/s"] / ours if "TFLOP/s" in row.units else None
    return found


def noted(made: Contest, times: Times) -> None:
    """Which calls could not be captured."""
    calls: dict[str, Call | str] = {OURS: made.ours, **made.peers, **made.beside}
    for name, call in calls.items():
        if isinstance(call, Call) and isinstance(call.run, Turns) and call.run.note:
            times[name].note = "; ".join(filter(None, (times[name].note, call.run.note)))


# And told.


def told(result: Result) -> str:
    cells = [f"{name} {span(t.seconds)}" for name, t in result.times.items() if t.seconds is not None]
    if result.bytes is not None:
        cells.append(f"{result.bytes / 1e6:.1f} MB")
    rate = "" if result.rate is None else f"{result.rate:.0f} TFLOP/s"
    return f"{result.group:<11}{result.name:<52}{rate:<13}{'  '.join(cells)}   {judged(result)}{result.note}"


def judged(result: Result) -> str:
    return "; ".join(f"{tier(v)} {'' if v.value is None else f'{v.value:.2f} '}({v.goal})" for v in result.verdicts)


def tier(verdict: Verdict) -> str:
    return MARKS[verdict.met] + "✓" * bool(verdict.met and verdict.stretch)


def write(folder: Path, about: dict[str, Any], checks: Sequence[Check], results: Sequence[Result]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = "attention-dry" if about["dry"] else "attention-gpu"
    data = {"about": about, "checks": [asdict(c) for c in checks], "rows": [asdict(r) for r in results]}
    (folder / f"{stem}.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / f"{stem}.md").write_text("\n".join(page(about, checks, results)) + "\n", encoding="utf-8")


def page(about: dict[str, Any], checks: Sequence[Check], results: Sequence[Result]) -> Iterator[str]:
    right = sum(check.passed for check in checks)
    verdicts = [v for r in results for v in r.verdicts if v.met is not None]
    met, far = (sum(v.met is True for v in verdicts), sum(v.stretch is True for v in verdicts))
    yield from ("# attention on a GPU", "")
    yield f"{about['device']}, CUDA {about['cuda']}; torch {about['torch']}, Python {about['python']},"
    yield f"xfn {about['commit']}; {about['date']}. A copy moves {about['copy'] / 1e12:.2f} TB/s."
    yield "bfloat16, and 16384 tokens of 2048 features, unless a row says otherwise."
    yield ""
    yield f"**{right} of {len(checks)} calls are right, and twice the same to the last bit;"
    yield f"{met} of {len(verdicts)} musts are met, and {far} goals.**"
    if about["dry"]:
        yield "This is a dry run on a CPU: its times mean nothing."
    notes: dict[str, int] = {}
    for check in checks:
        if not check.passed:
            yield f"\n- {check.name} is wrong: error {check.error:.1e}, of plain torch {check.plain:.1e} {check.note}"
    for group, rows in groupby(results, key=lambda r: r.group):
        yield from ("", f"## {group.capitalize()}", "")
        yield f"| | xfn | TFLOP/s | {' | '.join(PEERS)} | others | must ✓, goal ✓✓ |"
        yield "|---|---|---|" + "---|" * len(PEERS) + "---|---|"
        yield from (table_row(row, notes) for row in rows)
    yield ""
    yield from (f"{number}. {note}" for note, number in notes.items())


def table_row(result: Result, notes: dict[str, int]) -> str:
    def cell(name: str) -> str:
        taken = result.times.get(name)
        if taken is None:
            return ""
        return span(taken.seconds) + (f" ({notes.setdefault(taken.note, len(notes) + 1)})" if taken.note else "")

    ours = f"{result.bytes / 1e6:.1f} MB" if result.bytes is not None else cell(OURS)
    others = "; ".join(f"{name} {cell(name)}" for name in result.times if name not in (OURS, *PEERS))
    rate = "" if result.rate is None else f"{result.rate:.0f}"
    cells = [result.name, ours, rate, *map(cell, PEERS), others, (judged(result) or result.note).replace("|", "¦")]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
