"""One loss under every transform, with one attention after the other: who can, how fast, in how much memory."""

import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, func
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.measure import MIB, median_seconds, peak_bytes

Attend = Callable[..., Tensor]
Loss = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Point:
    """A loss(params, tokens, attend) and where it is differentiated; ``members`` are params, stacked."""

    loss: Callable[..., Tensor]
    params: Any
    direction: Any
    members: Any
    tokens: Tensor


Transform = Callable[[Loss, Point], Any]


# Other attentions to the past, on [..., M, H, K].


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = torch.einsum("...mhk,...nhk->...hmn", q, k) * q.shape[-1] ** -0.5
    future = torch.ones(s.shape[-2:], dtype=torch.bool).triu(1)
    return torch.einsum("...hmn,...nhv->...mhv", s.masked_fill(future, -torch.inf).softmax(-1), v)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(-3, -2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(-3, -2)


def flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    def past(s: Tensor, b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
        return torch.where(n <= m, s, -torch.inf)

    q, k, v = (t.transpose(-3, -2) for t in (q, k, v))
    return flex_attention(q, k, v, score_mod=past).transpose(-3, -2)


PEERS: dict[str, Attend] = {"plain softmax": softmax, "torch SDPA": sdpa, "flex_attention": flex}


# The transforms.


def value(f: Loss, p: Point) -> Any:
    return f(p.params, p.tokens)


def gradient(f: Loss, p: Point) -> Any:
    return func.grad(f)(p.params, p.tokens)


def per_example(f: Loss, p: Point) -> Any:
    return func.vmap(func.grad(f), (None, 0))(p.params, p.tokens[:, None])


def jvp(f: Loss, p: Point) -> Any:
    return func.jvp(lambda params: f(params, p.tokens), (p.params,), (p.direction,))


def hessian_vector(f: Loss, p: Point) -> Any:
    return func.jvp(lambda params: func.grad(f)(params, p.tokens), (p.params,), (p.direction,))


def double_backward(f: Loss, p: Point) -> Any:
    params = tree_map(lambda leaf: leaf.detach().requires_grad_(), p.params)
    leaves = tree_leaves(params)
    slopes = torch.autograd.grad(f(params, p.tokens), leaves, create_graph=True)
    return torch.autograd.grad(torch.stack([slope.square().sum() for slope in slopes]).sum(), leaves)


def ensemble(f: Loss, p: Point) -> Any:
    return func.vmap(f, (0, None))(p.members, p.tokens)


ROWS: tuple[tuple[str, str, Transform], ...] = (
    ("loss", "as it is", value),
    ("gradient", "grad", gradient),
    ("per example", "vmap(grad)", per_example),
    ("tangent", "jvp", jvp),
    ("Hessian-vector", "jvp(grad)", hessian_vector),
    ("backward twice", "grad(|grad|²)", double_backward),
    ("ensemble", "vmap(loss)", ensemble),
)


# Measuring.

WORKS, LOOPS, RAISES, DIFFERS = "✓ works", "↻ loops", "✗ raises", "differs"
FALLBACK = "There is a performance drop because we have not yet implemented the batching rule"


@dataclass
class Cell:
    """What became of one transform with one attention; ``note`` has torch's own words."""

    result: list[Tensor]
    state: str
    note: str = ""
    error: float | None = None
    seconds: float = 0.0
    peak: int = 0


def measure(transform: Transform, p: Point, attends: Mapping[str, Attend], repeats: int) -> list[Cell]:
    """One cell per attention; the others are compared with the first."""
    runs = [partial(transform, partial(p.loss, attend=attend), p) for attend in attends.values()]
    cells = [attempt(run) for run in runs]
    ran = [(cell, run) for cell, run in zip(cells, runs, strict=True) if cell.state != RAISES]

    # Numbers that agree in less than half of their digits are not the same.
    for cell, _ in ran:
        if cell is not cells[0] and cells[0].state != RAISES:
            cell.error = distance(cell.result, cells[0].result)
            cell.state = cell.state if cell.error < torch.finfo(torch.float32).eps ** 0.5 else DIFFERS

    # Those that ran take turns at the clock, and then each shows its memory to the profiler.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for (cell, run), seconds in zip(ran, median_seconds(*(run for _, run in ran), repeats=repeats), strict=True):
            cell.seconds, cell.peak = seconds, peak_bytes(run)
    return cells


def attempt(run: Callable[[], Any]) -> Cell:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = [leaf.detach() for leaf in tree_leaves(run())]
        except Exception as error:
            return Cell([], RAISES, f"{type(error).__name__}: {error}")
    slow = [str(w.message) for w in caught if FALLBACK in str(w.message)]
    return Cell(result, LOOPS, slow[0]) if slow else Cell(result, WORKS)


def distance(these: Sequence[Tensor], those: Sequence[Tensor]) -> float:
    """The largest difference between two tensors, as a part of the largest number in the second."""
    pairs = [((a - b).abs().max(), b.abs().max()) for a, b in zip(these, those, strict=True)]
    return torch.stack([gap / size if gap else gap for gap, size in pairs]).max().item()  # NaN stays


# Drawing, in 79 columns.

LABEL, CELL = 15, 14
BOLD, DIM, RED, GREEN, YELLOW = 1, 2, 31, 32, 33
COLOUR = {WORKS: GREEN, LOOPS: YELLOW, RAISES: RED, DIFFERS: RED}
SMALL = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def show(p: Point, attends: Mapping[str, Attend], repeats: int) -> dict[str, list[str]]:
    """Prints the table, row by row as it is measured, and what torch said; the states of each transform."""
    notes: dict[str, str] = {}
    states: dict[str, list[str]] = {}
    rule = paint("┼".join(["─" * LABEL, *["─" * (CELL + 2)] * len(attends)])[:-1], DIM)
    draw("", BOLD, [paint(f"{name:<{CELL}}", BOLD) for name in attends])
    for title, how, transform in ROWS:
        cells = measure(transform, p, attends, repeats)
        marks = [notes.setdefault(brief(c.note), str(len(notes) + 1)).translate(SMALL) if c.note else "" for c in cells]
        states[how] = [cell.state for cell in cells]
        print(rule)
        draw(title, BOLD, [verdict(cell, mark) for cell, mark in zip(cells, marks, strict=True)])
        draw(how, DIM, [cost(cell) for cell in cells])
    print(rule)
    draw("works in", BOLD, [paint(f"{total(column):<{CELL}}", BOLD) for column in zip(*states.values(), strict=True)])

    # How to read it.
    print(f"\nTime is the median of {repeats}, taken in turns; memory is the most held at one time;")
    print(f"1e-07 is the largest difference from {next(iter(attends))}, as a part of the largest number.\n")
    for note, mark in notes.items():
        print(textwrap.fill(note, 79, initial_indent=f"{mark.translate(SMALL)} ", subsequent_indent="  "))
    return states


def draw(label: str, code: int, cells: list[str]) -> None:
    columns = (f"{paint('│', DIM)} {cell}" for cell in cells)
    print(paint(f"{label:<{LABEL}}", code) + " ".join(columns).rstrip(), flush=True)


def verdict(cell: Cell, mark: str) -> str:
    """Its state, the number of its note, and how far it is from the first attention."""
    error = "" if cell.error is None else f"{cell.error:.0e}" if cell.error else "equal"
    return paint(cell.state, COLOUR[cell.state]) + mark + paint(f"{error:>{CELL - len(cell.state + mark)}}", DIM)


def cost(cell: Cell) -> str:
    if cell.state == RAISES:
        return " " * CELL
    time = f"{cell.seconds * 1e3:.0f} ms" if cell.seconds < 0.9995 else f"{cell.seconds:.3g} s"
    peak = f"{cell.peak / MIB:.0f} MiB" if cell.peak < 999.5 * MIB else f"{cell.peak / MIB / 1024:.2g} GiB"
    return f"{time:>6} {peak:>7}"


def total(states: Sequence[str]) -> str:
    right, loops = len(states) - states.count(RAISES) - states.count(DIFFERS), states.count(LOOPS)
    return f"{right} of {len(states)}" + (f", {loops} loop" if loops else "")


def brief(note: str) -> str:
    """The first words of a message."""
    return textwrap.shorten(note.splitlines()[0].split(". ")[0], 170, placeholder=" …")


def paint(text: str, code: int) -> str:
    """Coloured on a terminal, unless NO_COLOR is set."""
    return f"\033[{code}m{text}\033[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text
