"""What ``python -m benchmarks.run masks`` times and weighs: heads over the tiles of a causal layout against torch.nn's
MultiheadAttention with a mask, and one call with a mask of many entries and with one of few."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import xfn
from benchmarks.attention import peers
from benchmarks.attention.grid import flops
from benchmarks.attention.problem import BOTH, FORWARD, Form, Settings, forward
from benchmarks.contest import BEST, Call, Contest, Row, faster, lighter
from benchmarks.machine import name
from xfn import bias, layout, random

BLOCK = 32
MANY, FEW = 0.9, 0.1
NO_FLEX = "flex_attention is left out of what is weighed"
NN, PLAIN = "MultiheadAttention", "without weights"
"""As it is called by default, which makes the weights; and as it is called by those who know."""


def rows(settings: Settings) -> Iterator[Row]:
    B, H, S, E = (1, 4, 128, 64) if settings.quick else (2, 8, 2048, 1024)
    for what, dtype in product((FORWARD, BOTH), (torch.float32, torch.bfloat16)):
        title = f"causal tiles of {BLOCK} {what} {name(dtype)} {B}x{S}x{E}"
        aims = faster(1.0), lighter(2.6, of=NN), lighter(1.0, of=PLAIN)
        yield Row("blocksparse", title, partial(heads, what, dtype, B, H, S, E), dtype, goals=aims, memory=True)
    B, S, K = (2, 128, 64) if settings.quick else (16, 1024, 1024)
    for density in (MANY, FEW):
        title = f"mask of {density:.0%} {FORWARD} float32 {B}x{S}x{K}"
        goals = faster(1.0), lighter(1.0, of=BEST if density == MANY else f"mask of {MANY:.0%}")
        work = flops(FORWARD, B, 1, S, K, causal=False) * density
        make = partial(masked, settings, density, B, S, K)
        yield Row("masks", title, make, torch.float32, work, goals, memory=True)


def heads(what: str, dtype: torch.dtype, B: int, H: int, S: int, E: int) -> Contest:
    """The same weights in both."""
    params = xfn.init_heads(random.key(0), E, H, dtype=dtype)
    theirs = nn.MultiheadAttention(E, H, batch_first=True, dtype=dtype)
    joined = {
        f"in_proj_{kind}": torch.cat([params[part][kind] for part in ("q", "k", "v")]) for kind in ("weight", "bias")
    }
    theirs.load_state_dict(joined | {f"out_proj.{kind}": t for kind, t in params["out"].items()})
    x, d = random.normal(random.key(1), (2, B, S, E)).to(dtype)
    tiles, hidden = layout.causal(S, block=BLOCK), torch.ones(S, S, dtype=torch.bool).triu(1)

    def attend(q: Tensor, k: Tensor, v: Tensor, _: Any, *, key: Tensor | None) -> Tensor:
        return xfn.blocksparse_attention(tiles, q, k, v, bias.causal())

    def ours(x: Tensor) -> Tensor:
        return xfn.heads(params, x, heads=H, attend=attend)

    def torchs(x: Tensor, weights: bool) -> Tensor:
        return theirs(x, x, x, attn_mask=hidden, need_weights=weights)[0]  # type: ignore[no-any-return]

    def call(f: Any, leaves: Sequence[Tensor]) -> Call:
        for leaf in leaves:
            leaf.requires_grad_()
        own = x.detach().requires_grad_()
        if what == FORWARD:  # of a call that could be differentiated, and keeps what that needs until its end
            return Call(lambda: f(own).detach())
        return Call(lambda: torch.autograd.grad(f(own), [own, *leaves], d)[0])

    mine = [t for part in params.values() for t in part.values()]  # type: ignore[attr-defined]
    given = [*theirs.parameters()]
    calls = {NN: call(partial(torchs, weights=True), given), PLAIN: call(partial(torchs, weights=False), given)}
    return Contest(call(ours, mine), calls)


def masked(settings: Settings, density: float, B: int, S: int, K: int) -> Contest:
    """Self-attention of one head; beside it, the same call with many entries."""
    x = random.uniform(random.key(0), (B, S, 1, K))
    many, mask = (random.bernoulli(random.key(1), p, (S, S)) for p in (MANY, density))
    form = Form(
        lambda q, k, v: settings.ours(q, k, v, mask), peers.sdpa(mask), peers.softmax(mask), NO_FLEX
    )  # fmt: skip
    beside = {} if density == MANY else {f"mask of {MANY:.0%}": Call(forward(settings.ours, (x, x, x, many)))}
    return form.contest(FORWARD, (x, x, x, x), beside=beside)
