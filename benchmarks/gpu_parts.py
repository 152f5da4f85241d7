"""Rows of a GPU's table for the functions around attention: norms, softmax, dropout, and an mlp.

All but the mlp move numbers and compute next to nothing, so that they are held against what a copy moves: ``bandwidth``
is how long it would take for what must be read and written. Each is held against plain torch, compiled.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import xfn
from benchmarks.attention.problem import BOTH, FORWARD, Attend
from benchmarks.contest import Call, Contest
from benchmarks.gpu_calls import SETS, Row, Turns, Where, aims, bandwidth, pulled
from xfn import bias, random

NORM = aims(bandwidth=(0.85, 0.92, 1.0), compiled=(1.0, 1.15))
P = 0.1


def rows(where: Where) -> Iterator[Row]:
    tokens, widths = (32, (24, 48)) if where.dry else (16384, (2048, 8192))
    for what in (FORWARD, BOTH):
        for E in widths:
            moved = 2.0 * tokens * E * (2 if what == FORWARD else 5) / bandwidth(where)
            for name, ours, theirs, shared in norms(E):
                run = partial(level, where, what, ours, theirs, [(tokens, E), *[(E,)] * shared])
                yield Row("rows", f"{what} of {name}, {tokens}x{E}", run, NORM, {"bandwidth": moved})
            run = partial(dropped, where, what, tokens, E)
            moved *= (3 if what == FORWARD else 6) / (2 if what == FORWARD else 5)
            name = f"{what} of bias, gelu, dropout and residual, {tokens}x{E}"
            yield Row("rows", name, run, NORM, {"bandwidth": moved})
        S = 64 if where.dry else 4096
        moved = 2.0 * 8 * S * S * (2 if what == FORWARD else 5) / bandwidth(where)
        run = partial(level, where, what, xfn.softmax, partial(F.softmax, dim=-1), [(8, S, S)])
        yield Row("rows", f"{what} of softmax, 8x{S}x{S}", run, NORM, {"bandwidth": moved})
    causal = bias.causal()
    hidden = torch.ones(S, S, dtype=torch.bool, device=where.device).triu(1)
    theirs = lambda x: F.softmax(x.masked_fill(hidden, -torch.inf), -1)
    run = partial(level, where, FORWARD, lambda x: xfn.softmax(x, causal), theirs, [(8, S, S)])
    yield Row("rows", f"forward of softmax, causal, 8x{S}x{S}", run, aims(compiled=(1.0, 1.15)))
    for what, p in ((FORWARD, P), (FORWARD, 0.0), (BOTH, P)):
        E = widths[0]
        matmul = 2.0 * 2 * tokens * 4 * E * E * (1 if what == FORWARD else 3) / 1e12
        name = f"{what} of mlp, gelu {'and' if p else 'without'} dropout, {tokens}x{E}"
        asked = aims(compiled=(0.95, 1.1), **({"apart": (1.0, 1.1)} if what == FORWARD else {}))
        yield Row("parts", name, partial(fed, where, what, tokens, E, p), asked, {"TFLOP/s": matmul})


def norms(E: int) -> Iterator[tuple[str, Attend, Attend, int]]:
    """A name, ours, torch's, and how many parameters."""
    yield (
        "layer_norm",
        lambda x, w, b: xfn.layer_norm({"weight": w, "bias": b}, x),
        lambda x, w, b: F.layer_norm(x, (E,), w, b),
        2,
    )
    yield "rms_norm", lambda x, w: xfn.rms_norm({"weight": w}, x), lambda x, w: F.rms_norm(x, (E,), w, 1e-6), 1


def level(
    where: Where, what: str, ours: Attend, theirs: Attend, shapes: Sequence[tuple[int, ...]], comparable: bool = True,
    apart: Attend | None = None,
) -> Contest:  # fmt: skip
    """Ours against plain torch and against the same compiled, on the same numbers in bfloat16; beside it ours
    ``apart``, whose products are torch's."""
    generator = torch.Generator().manual_seed(0)
    ts = [torch.randn(s, generator=generator).to(where.device, torch.bfloat16) for s in (*shapes, shapes[0])]
    sets = [[t.roll(i, 0) for t in ts] for i in range(SETS)]
    code: Any = theirs if where.dry else torch.compile(theirs, dynamic=False)

    def call(f: Attend) -> Call:
        return Call(Turns([pulled(what)(f, at, d) for *at, d in sets], where.device == "cuda"), compiled=True)

    beside = {} if apart is None else {"apart": call(apart)}
    return Contest(call(ours), {"eager": call(theirs), "compiled": call(code)}, beside, comparable)


def dropped(where: Where, what: str, tokens: int, E: int) -> Contest:
    key = random.key(0).to(where.device)
    ours: Attend = lambda x, b, y: xfn.dropout(x, P, b, "gelu", y, key=key)
    theirs: Attend = lambda x, b, y: y + F.dropout(F.gelu(x + b), P)
    return level(where, what, ours, theirs, [(tokens, E), (E,), (tokens, E)], comparable=False)


def fed(where: Where, what: str, tokens: int, E: int, p: float) -> Contest:
    """Where nothing is differentiated, a map is one kernel with what follows it."""
    key = random.key(0).to(where.device)

    def ours(x: Tensor, u: Tensor, b: Tensor, d: Tensor, c: Tensor) -> Tensor:
        params: Any = {"up": {"weight": u, "bias": b}, "down": {"weight": d, "bias": c}}
        return xfn.mlp(params, x, "gelu", p, key=key)

    def apart(x: Tensor, u: Tensor, b: Tensor, d: Tensor, c: Tensor) -> Tensor:
        h = xfn.dropout(x @ u.mT, p, b, "gelu", key=key)
        return xfn.dropout(h @ d.mT, p, c, key=key)

    def theirs(x: Tensor, u: Tensor, b: Tensor, d: Tensor, c: Tensor) -> Tensor:
        return F.dropout(F.linear(F.dropout(F.gelu(F.linear(x, u, b)), p), d, c), p)

    shapes = [(tokens, E), (4 * E, E), (4 * E,), (E, 4 * E), (E,)]
    return level(where, what, ours, theirs, shapes, not p, apart if what == FORWARD else None)
