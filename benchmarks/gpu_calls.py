"""What a GPU's rows are made of: inputs that take turns, calls captured as graphs, and torch's attentions by kernel."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from benchmarks.attention import peers
from benchmarks.attention.problem import FORWARD, Attend, both, forward, turned
from benchmarks.attention.problem import tensors as drawn
from benchmarks.contest import Call, Contest, Goal, brief

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
SETS = 2
"""So many inputs take turns, so that none is found in a cache."""


@dataclass(frozen=True)
class Where:
    """The device, and whether sizes are tiny because nothing is to be measured."""

    device: str
    dry: bool

    def sized(self, S: int, D: int) -> tuple[int, int, int, int]:
        """B, H, S, D of 16384 tokens and 2048 features."""
        return (1, 2, max(64, S // 64), 16) if self.dry else (max(1, 16384 // S), 2048 // D, S, D)

    def tensors(self, *size: int, G: int | None = None, M: int | None = None) -> list[Tensor]:
        """q, k, v and a gradient in bfloat16, ``[B, S, H, D]``."""
        B, H, S, D = size
        return [t.to(self.device) for t in drawn(B, H, S, D, torch.bfloat16, G=G, M=M)]


@dataclass(frozen=True)
class Aim(Goal):
    """A goal in tiers: ``bound`` is a must, ``stretch`` the goal, and no one is asked to pass the limit."""

    limit: float | None = None

    def __str__(self) -> str:
        tiers = {"must": self.bound, "goal": self.stretch, "limit": self.limit}
        told = ", ".join(f"{name} {value:g}" for name, value in tiers.items() if value is not None)
        return f"{'≤' if self.most else '≥'} {self.of}: {told}"


def aims(**by: tuple[float, ...]) -> tuple[Aim, ...]:
    """That the other takes so many times as long, ``(must, goal, limit)`` or the first of these; ``_`` is a space."""

    def aim(of: str, must: float, goal: float | None = None, limit: float | None = None) -> Aim:
        return Aim(of.replace("_", " "), must, goal, limit=limit)

    return tuple(aim(of, *tiers) for of, tiers in by.items())


def at_most(**by: tuple[float, ...]) -> tuple[Aim, ...]:
    """That ours takes at most so many times as long."""
    return tuple(replace(aim, most=True) for aim in aims(**by))


@dataclass(frozen=True)
class Row:
    """A row of the table. ``units`` are seconds that our time is held against besides other calls': TFLOP/s is how
    long the work takes at one of it. ``memory`` measures bytes, for seconds."""

    group: str
    name: str
    make: Callable[[], Contest]
    aims: tuple[Aim, ...]
    units: Mapping[str, float] = field(default_factory=dict)
    memory: bool = False


class Turns:
    """One call over several inputs, in turn; on a GPU each becomes a graph when it first runs, if it can."""

    def __init__(self, runs: Sequence[Callable[[], Any]], capture: bool) -> None:
        self.runs, self.capture, self.next, self.note = list(runs), capture, 0, ""

    def __call__(self) -> Any:
        if self.capture:
            self.capture = False
            try:
                self.runs = [captured(run) for run in self.runs]
            except Exception as error:
                torch.cuda.synchronize()
                self.note = f"no graph: {brief(error)}"
        self.next += 1
        return self.runs[(self.next - 1) % len(self.runs)]()


def captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """A replay, whose results stay where they are."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = run()

    def replay() -> Any:
        graph.replay()
        return held

    return replay


copied = {"cpu": 1e10, "cuda": 3e12}
"""Bytes a second that a copy reads and writes, by device; set by what was measured first."""


def bandwidth(where: Where) -> float:
    return copied[where.device]


Maker = Callable[[Attend, Sequence[Tensor], Tensor], Callable[[], Any]]


def pulled(what: str) -> Maker:
    """Forward, or forward and backward."""
    return lambda f, ts, d: forward(f, ts) if what == FORWARD else both(f, ts, d)


def match(
    where: Where,
    make: Maker,
    ts: Sequence[Tensor],
    ours: Attend,
    theirs: Mapping[str, Attend | str],
    *,
    beside: Mapping[str, Callable[[], Any] | Attend] | None = None,
    more: Sequence[Tensor] = (),
    results: int = 3,
) -> Contest:
    """Ours against others' on the same numbers. ``theirs`` take ``[B, H, S, D]`` and give the first ``results`` of
    their results so; so do those beside, whose results are not compared."""
    sets = [[t.roll(i, -1) for t in ts] for i in range(SETS)]

    def call(f: Attend, turn: bool) -> Call:
        runs = []
        for *operands, d in sets:
            at, gradient = (turned(operands), turned([d])[0]) if turn else (operands, d)
            runs.append(make(f, (*at, *more), gradient))
        return Call(Turns(runs, where.device == "cuda"), results if turn else 0, compiled=True)

    rivals = {name: f if isinstance(f, str) else call(f, True) for name, f in theirs.items()}
    return Contest(call(ours, False), rivals, {name: call(f, True) for name, f in (beside or {}).items()})


def alone(where: Where, run: Callable[[], Any]) -> Contest:
    """One call, that is held against a time."""
    return Contest(Call(Turns([run], where.device == "cuda"), compiled=True), {})


# Others' attentions.


def sdpa(*names: str, causal: bool = False, mask: Tensor | None = None) -> dict[str, Attend | str]:
    """torch's own by kernel; a bias that is differentiated comes after v."""
    return {name: peers.on(KERNELS[name], peers.sdpa(mask, causal)) for name in names}


def flex(where: Where, M: int, N: int, **how: Any) -> dict[str, Attend | str]:
    return {"flex": peers.flex(M, N, device=where.device, code=not where.dry, **how)}


def flex_bias(where: Where) -> dict[str, Attend | str]:
    """flex_attention that adds a tensor, which is differentiated."""
    made: dict[int, Attend] = {}

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        if id(bias) not in made:
            score = lambda s, b, h, m, n: s + bias[h, m, n]
            made[id(bias)] = peers.flex(q.shape[-2], k.shape[-2], score=score, device=where.device, code=not where.dry)
        return made[id(bias)](q, k, v)

    return {"flex": attend}


def varlen(lengths: Sequence[int], device: str) -> dict[str, Attend | str]:
    """torch's attention over sequences that are packed, on ``[1, H, S, D]``."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return {"varlen": f"torch {torch.__version__} has no varlen_attn"}
    ends = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(device, torch.int32)

    def attend(*x: Tensor) -> Tensor:
        q, k, v = (t[0].transpose(0, 1) for t in x)
        out: Any = varlen_attn(q, k, v, ends, ends, max(lengths), max(lengths))
        return out.transpose(0, 1)[None]  # type: ignore[no-any-return]

    return {"varlen": attend}
