"""Attention under torch.func: tangents, Hessian-vector products and per-example gradients."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

import xfn
from benchmarks.attention import peers
from benchmarks.attention.goals import FLOOR
from benchmarks.attention.problem import BOTH, FORWARD, Attend, Settings, both, forward, past, tensors, turned
from benchmarks.contest import Call, Contest, Row, faster, within
from benchmarks.machine import name

GROUP = "transforms"
Transform = Callable[[Attend, Sequence[Tensor], Tensor], Callable[[], Any]]


def tangent(f: Attend, ts: Sequence[Tensor], d: Tensor) -> Callable[[], Any]:
    point, along = tuple(ts), tuple(t.flip(-1) for t in ts)
    return lambda: jvp(f, point, along)


def curvature(f: Attend, ts: Sequence[Tensor], d: Tensor) -> Callable[[], Any]:
    """jvp of grad."""
    point, along = tuple(ts), tuple(t.flip(-1) for t in ts)
    slopes = grad(lambda *ts: (f(*ts) * d).sum(), (0, 1, 2))
    return lambda: jvp(slopes, point, along)


def per_example(f: Attend, ts: Sequence[Tensor], d: Tensor) -> Callable[[], Any]:
    def loss(q: Tensor, k: Tensor, v: Tensor, d: Tensor) -> Tensor:
        return (f(q, k, v) * d).sum()

    q, k, v = ts
    slopes = vmap(grad(loss, (0, 1, 2)))
    return lambda: slopes(q, k, v, d)


def rows(settings: Settings) -> Iterator[Row]:
    size = (1, 8, 512 if settings.quick else 2048, 64)
    title = "x".join(map(str, size))
    for dtype, mask in product((torch.float32, torch.bfloat16), ("dense", "causal")):
        for called, transform, base, bound in (("jvp", tangent, FORWARD, 3.3), ("hvp", curvature, BOTH, 3.5)):
            make = partial(against_math, settings, transform, base, dtype, size, causal=mask == "causal")
            gates = (FLOOR, within(bound, base), faster(3.0, of="sdpa math"))
            yield Row(GROUP, f"{called} {name(dtype)} {mask} {title}", make, dtype, goals=gates)
    for dtype in (torch.float32, torch.bfloat16):
        gates = (FLOOR, within(1.1, "one batch"), faster(2.0, of="sdpa"))
        work = 3.5 * 4 * 64 * 4 * 128**2 * 32
        make = partial(examples, settings, dtype)
        yield Row(GROUP, f"vmap(grad) {name(dtype)} dense 64 of 4x128x32", make, dtype, work, gates)


def against_math(
    settings: Settings,
    transform: Transform,
    base: str,
    dtype: torch.dtype,
    size: tuple[int, int, int, int],
    *,
    causal: bool,
) -> Contest:
    """SDPA's fused path has no tangent; its plain one does."""
    *ts, d = tensors(*size, dtype)
    *theirs, e = turned((*ts, d))
    attend, S = settings.ours, size[2]
    ours: Attend = (lambda q, k, v: attend(q, k, v, xfn.bias.causal())) if causal else attend
    sdpa, softmax = peers.sdpa(causal=causal), peers.softmax(past(S, S) if causal else None)
    return Contest(
        Call(transform(ours, ts, d)),
        {
            "sdpa": Call(transform(sdpa, theirs, e), 6),
            "sdpa math": Call(transform(peers.on_math(sdpa), theirs, e), 6),
            "softmax": Call(transform(softmax, theirs, e), 6),
        },
        {base: Call(forward(ours, ts) if base == FORWARD else both(ours, ts, d))},
    )


def examples(settings: Settings, dtype: torch.dtype) -> Contest:
    """Gradients of 64 examples, each on its own; one batch of the 64 has the same gradients."""
    *ts, d = tensors(64, 4, 128, 32, dtype)
    *theirs, e = turned((*ts, d))
    attend = settings.ours

    def batch() -> Any:
        leaves = [t.detach().requires_grad_() for t in ts]
        return torch.autograd.grad((attend(*leaves) * d).sum(), leaves)

    def lifted(f: Attend) -> Attend:
        """As a batch of one inside the map: SDPA fuses nothing else."""
        return lambda *ts: f(*(t[None] for t in ts))[0]

    return Contest(
        Call(per_example(attend, ts, d)),
        {
            "sdpa": Call(per_example(lifted(peers.sdpa()), theirs, e), 3),
            "sdpa math": Call(per_example(peers.on_math(peers.sdpa()), theirs, e), 3),
            "softmax": Call(per_example(peers.softmax(), theirs, e), 3),
        },
        {"one batch": Call(batch)},
    )
