"""A contest: our call and its peers, timed in turns in one process, and the goals that their times are held to."""

import statistics
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.measure import interleaved, peak_bytes

OURS, BEST, LIMIT = "xfn", "best", "limit"

FAR = 20.0  # a peer that takes this many times ours is run once
BEHIND = 3.0  # and so is a long call that takes this many times the fastest peer: it cannot be the best
LONG = 0.1  # seconds; shorter calls are cheap enough to be timed in full
PATIENCE = 2.0  # seconds; a shorter first run may have been setting something up, and is repeated
SAMPLE = 1e-3  # seconds; shorter calls are repeated until a sample is this long
MOST = 51


@dataclass(frozen=True)
class Call:
    """Something to time. What it returns is compared with what our call returns."""

    run: Callable[[], Any]
    turned: int = 0  # how many of its results, the first ones, are [B, H, S, D] where ours are [B, S, H, D]
    compiled: bool = False  # its first run compiles


@dataclass(frozen=True)
class Contest:
    """What one row times. A peer that takes no part is the reason why; ``beside`` is for goals and for the record,
    and never the best; ``comparable`` is False where two calls draw different random numbers; ``tell`` says at the end
    what else there is to know of each."""

    ours: Call
    peers: Mapping[str, Call | str]
    beside: Mapping[str, Call] = field(default_factory=dict)
    comparable: bool = True
    tell: Callable[[], Mapping[str, str]] = dict


@dataclass(frozen=True)
class Goal:
    """Our time against another's: it takes at least ``bound`` times ours, or ours is at most ``bound`` times its own.
    With ``memory``, it is the most bytes that each holds.

    ``of`` is a peer, a call beside, the best peer, or the limit, of which ours reaches a share. ``scale`` shrinks the
    other's time to what ours is to be compared with, and ``spare`` seconds of ours do not count.
    """

    of: str
    bound: float
    stretch: float | None = None
    most: bool = False
    scale: float = 1.0
    spare: float = 0.0
    memory: bool = False

    def __str__(self) -> str:
        if self.of == LIMIT:
            return f"≥ {self.bound:.0%} of limit"
        scale = "" if self.scale == 1 else f"{self.scale:.3f} "
        spare = f" + {self.spare * 1e3:g} ms" if self.spare else ""
        return (
            f"{'≤' if self.most else '≥'} {self.bound:g}× {scale}{self.of}{spare}{' in memory' if self.memory else ''}"
        )

    def holds(self, value: float, bound: float) -> bool:
        return value <= bound if self.most else value >= bound


def faster(bound: float, stretch: float | None = None, of: str = BEST) -> Goal:
    """The other takes at least ``bound`` times what ours takes."""
    return Goal(of, bound, stretch)


def within(bound: float, of: str, stretch: float | None = None, scale: float = 1.0, spare: float = 0.0) -> Goal:
    """Ours takes at most ``bound`` times what ``scale`` of the other takes, and ``spare`` seconds more."""
    return Goal(of, bound, stretch, most=True, scale=scale, spare=spare)


def lighter(bound: float, of: str = BEST) -> Goal:
    """The other holds at least ``bound`` times the bytes that ours holds."""
    return Goal(of, bound, memory=True)


def share(bound: float) -> Goal:
    """Ours reaches this part of the limit."""
    return Goal(LIMIT, bound)


@dataclass(frozen=True)
class Row:
    """A row of the table; ``make`` builds its calls when its turn comes, ``flops`` is what ours must compute. With
    ``memory``, the most bytes that each call holds are measured, too."""

    group: str
    name: str
    make: Callable[[], Contest]
    dtype: torch.dtype
    flops: float | None = None
    goals: tuple[Goal, ...] = ()
    memory: bool = False


@dataclass
class Time:
    """The median of ``runs`` samples, and the least of them; without seconds, ``note`` says why."""

    seconds: float | None
    least: float | None = None
    runs: int = 0
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """What became of a goal; None where there was nothing to compare with, or no stretch to reach."""

    goal: str
    of: str
    bound: float
    value: float | None
    met: bool | None
    stretch: bool | None


Times = dict[str, Time]


def race(contest: Contest, clock: Callable[[], float], budget: float, least: int, *, drop: bool = True) -> Times:
    """The times of every call; about ``budget`` seconds for all rounds together, and at least ``least`` rounds.

    With ``drop``, those that cannot win are run once.
    """
    want, ours = trial(contest.ours, clock, enough=float("inf"))
    times: Times = {OURS: Time(ours)}
    playing = {OURS: contest.ours.run}

    # Each shows once what it can do.
    for name, call in others(contest):
        if isinstance(call, str):
            times[name] = Time(None, note=call)
            continue
        try:
            result, taken = trial(call, clock, enough=max(PATIENCE, BEHIND * ours))
        except Exception as raised:
            times[name] = Time(None, note=f"{name} raises {brief(raised)}")
            continue
        error = 0.0 if name in contest.beside or not contest.comparable else distance(want, result)
        if error < tolerance(want):
            times[name] = Time(taken, taken, 1)
            playing[name] = call.run
        else:
            times[name] = Time(None, note=f"{name} differs from ours by {error:.0e} of the largest number")
        del result
    del want

    # Those that cannot win are not asked again, and the others take turns.
    fastest = min((t.seconds for name, t in times.items() if name in contest.peers and t.seconds), default=ours)
    for name in [name for name in playing if drop and name in contest.peers]:
        taken = times[name].seconds or 0.0
        if taken > FAR * ours:
            times[name].note = f"one run: more than {FAR:g} times ours"
            del playing[name]
        elif taken > max(LONG, BEHIND * fastest):
            times[name].note = f"one run: more than {BEHIND:g} times the fastest peer"
            del playing[name]

    calls = [max(1, round(SAMPLE / (times[name].seconds or SAMPLE))) for name in playing]
    total = sum(n * (times[name].seconds or 0.0) for n, name in zip(calls, playing, strict=True))
    rounds = min(MOST, max(least, int(budget / total)))
    samples = interleaved(list(playing.values()), clock, rounds, calls)
    for name, taken_in_turns in zip(playing, samples, strict=True):
        times[name] = Time(statistics.median(taken_in_turns), min(taken_in_turns), rounds)
    return times


def others(contest: Contest) -> Iterator[tuple[str, Call | str]]:
    yield from contest.beside.items()
    yield from contest.peers.items()


def trial(call: Call, clock: Callable[[], float], enough: float) -> tuple[list[Tensor], float]:
    """What a call returns, in our layout, and about how long it takes: the second run, unless the first already
    took ``enough``."""
    start = clock()
    result = [leaf.detach() for leaf in tree_leaves(call.run())]
    taken = clock() - start
    if call.compiled or taken < enough:
        start = clock()
        call.run()
        taken = clock() - start
    return [t.transpose(-3, -2) for t in result[: call.turned]] + result[call.turned :], taken


def peaks(contest: Contest, times: Times) -> dict[str, int]:
    """The most bytes that each call holds at one time, beyond what its result holds, of those that work; one at least,
    so that there is a ratio."""
    calls = {OURS: contest.ours} | {name: call for name, call in others(contest) if isinstance(call, Call)}
    return {name: max(1, peak_bytes(call.run)) for name, call in calls.items() if times[name].seconds is not None}


def distance(these: list[Tensor], those: list[Tensor]) -> float:
    """The largest difference between two tensors, as a part of the largest number in them."""
    found = [0.0]
    for a, b in zip(these, those, strict=True):
        if a.shape != b.shape:
            return float("inf")
        gap, size = (a.float() - b.float()).abs().max().item(), b.float().abs().max().item()
        found.append(gap / size if gap else gap)
    return max(found, key=lambda x: float("inf") if x != x else x)


def tolerance(result: list[Tensor]) -> float:
    """Numbers that agree in less than half of their digits are not the same."""
    return float(max(torch.finfo(t.dtype).eps for t in result) ** 0.5)


def restricted(contest: Contest, times: Times) -> Contest:
    """The contest among those that were timed in full."""
    peers = {name: call for name, call in contest.peers.items() if times[name].runs > 1}
    return replace(contest, peers=peers)


def best(contest: Contest, times: Times) -> str | None:
    """The fastest peer that works."""
    return least(contest, {name: taken.seconds for name, taken in times.items() if taken.seconds is not None})


def least(contest: Contest, numbers: Mapping[str, float]) -> str | None:
    """The peer whose number is the least."""
    return min((name for name in contest.peers if name in numbers), key=lambda name: numbers[name], default=None)


def judge(goal: Goal, ours: float, other: float | None, share: float | None) -> Verdict:
    """``other`` is the time that the goal is about, if there is one, and ``share`` that of the limit."""
    if goal.of == LIMIT:
        value = share
    elif other is None:
        value = None
    else:
        value = (ours - goal.spare) / (goal.scale * other) if goal.most else goal.scale * other / ours
    met = None if value is None else goal.holds(value, goal.bound)
    stretch = None if value is None or goal.stretch is None else goal.holds(value, goal.stretch)
    return Verdict(str(goal), goal.of, goal.bound, value, met, stretch)


def brief(error: Exception) -> str:
    """The first words of an error."""
    text = (str(error).strip().splitlines() or [""])[0]
    return textwrap.shorten(f"{type(error).__name__}: {text}", 150, placeholder=" …")
