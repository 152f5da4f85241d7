"""Attention over the tiles of a layout, against our dense attention, and against peers that take the same mask."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch

import xfn
from benchmarks.attention import peers
from benchmarks.attention.grid import flops
from benchmarks.attention.problem import BOTH, FORWARD, Form, Settings, both, forward, tensors
from benchmarks.contest import Call, Contest, Goal, Row, faster, within
from benchmarks.machine import name
from xfn import layout, random
from xfn.layout import Layout

PAIR = (torch.float32, torch.bfloat16)
DENSITIES = (0.5, 0.25, 0.1, 0.05)
SPARE = 3e-4  # seconds, for what does not shrink with the density
Make = Callable[[int], Layout]


def drawn(block: int, density: float, heads: int = 1) -> Make:
    return lambda S: layout.random(S, block=block, density=density, heads=heads, key=random.key(0))


PATTERNS: dict[str, Make] = {
    "block 128, 10 %": drawn(128, 0.1),
    "block 32, 10 %": drawn(32, 0.1),
    "block 16, 10 %": drawn(16, 0.1),
    "block 64, 10 %, per head": drawn(64, 0.1, 8),
    "block 64, causal window": lambda S: layout.causal(S, block=64) & layout.local(S, block=64, window=256),
    "block 64, bigbird": lambda S: layout.bigbird(S, block=64, key=random.key(0)),
    "block 64, strided": lambda S: layout.strided(S, block=64, stride=512),
}


def rows(settings: Settings) -> Iterator[Row]:
    S = 1024 if settings.quick else 4096
    for density, what, dtype in product(DENSITIES, (FORWARD, BOTH), PAIR):
        yield row(settings, "tiles of 64", f"block 64, {density:.0%}", drawn(64, density), S, what, dtype, 1.25)
    for (title, make), dtype in product(PATTERNS.items(), PAIR):
        yield row(settings, "other layouts", title, make, S, FORWARD, dtype)


def row(
    settings: Settings, group: str, title: str, make: Make, S: int, what: str, dtype: torch.dtype, most: float = 0.0
) -> Row:
    """``most``: how many times its part of the dense time ours may take, and a little more."""
    live = make(S).density
    goals: tuple[Goal, ...] = (faster(1.5),)
    if most:
        goals = (within(most, "dense", scale=live, spare=SPARE), *goals)
    work = flops(what, 1, 8, S, 64, causal=False) * live
    run = partial(contest, settings, make, S, what, dtype)
    return Row(group, f"{title} {what} {name(dtype)} 1x8x{S}x64", run, dtype, work, goals)


def contest(settings: Settings, make: Make, S: int, what: str, dtype: torch.dtype) -> Contest:
    tiles, ts = make(S), tensors(1, 8, S, 64, dtype)
    mask = tiles.to_mask()
    form = Form(
        partial(xfn.blocksparse_attention, tiles, backend=settings.backend),
        peers.sdpa(mask),
        peers.softmax(mask),
        peers.flex(S, S, block_mask=layout.to_block_mask(tiles)) if settings.flex else peers.NO_FLEX,
    )
    *leaves, d = ts
    dense = Call(forward(settings.ours, leaves) if what == FORWARD else both(settings.ours, leaves, d))
    return form.contest(what, ts, beside={"dense": dense})
