"""Attention in its other forms: biases, masks, windows, shared heads, dropout, decoding, and calls of no size."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

import xfn
from benchmarks.attention import peers
from benchmarks.attention.goals import FLOOR
from benchmarks.attention.grid import flops
from benchmarks.attention.problem import BOTH, FORWARD, Attend, Form, Settings, both, forward, plain, tensors
from benchmarks.contest import Call, Contest, Goal, Row, faster, within
from benchmarks.machine import name

PAIR = (torch.float32, torch.bfloat16)
WINDOW = 256


def rows(settings: Settings) -> Iterator[Row]:
    yield from biased(settings)
    yield from windows(settings)
    yield from grouped(settings)
    yield from dropped(settings)
    yield from decoding(settings)
    yield from overhead(settings)


def biased(settings: Settings) -> Iterator[Row]:
    S = 512 if settings.quick else 2048
    for dtype, what, kind in product(PAIR, (FORWARD, BOTH), ("bias", "mask")):
        goals: tuple[Goal, ...]
        if kind == "bias" and what == BOTH:
            goals = (FLOOR, faster(2.5, of="sdpa"))
        elif what == BOTH:
            goals = (FLOOR, faster(1.5, of="sdpa"))
        elif dtype == torch.float32:
            goals = (FLOOR, faster(1.15, 1.3, of="sdpa") if kind == "bias" else faster(1.5, of="sdpa"))
        else:
            goals = (FLOOR, faster(2.0, 2.5, of="sdpa"))
        if what == FORWARD:
            goals = (*goals, within(1.3, "without", 1.12))
        make = partial(with_bias, settings, what, dtype, S, kind)
        work = flops(what, 1, 8, S, 64, causal=False)
        yield Row("biases and masks", f"{kind} {what} {name(dtype)} 1x8x{S}x64", make, dtype, work, goals)


def with_bias(settings: Settings, what: str, dtype: torch.dtype, S: int, kind: str) -> Contest:
    """A bias for each head, differentiated in backward; or one random mask that hides half of the keys."""
    ts = tensors(1, 8, S, 64, dtype)
    generator = torch.Generator().manual_seed(1)
    attend = settings.ours
    if kind == "mask":
        mask = torch.rand(S, S, generator=generator) < 0.5

        def keep(b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
            return mask[m, n]

        flex: Attend | str = peers.flex(S, S, keep)
        form = Form(lambda q, k, v: attend(q, k, v, mask), peers.sdpa(mask), peers.softmax(mask), flex)
    else:
        bias = torch.randn(1, 8, S, S, generator=generator).to(dtype)

        def added(s: Tensor, b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
            return s + bias[b, h, m, n]

        flex = peers.flex(S, S, score=added)
        if what == BOTH:
            form = Form(attend, peers.sdpa(), peers.softmax(), flex)
            return form.contest(what, ts, (bias,))
        form = Form(lambda q, k, v: attend(q, k, v, bias), peers.sdpa(bias), peers.softmax(bias), flex)
    form = form if settings.flex else Form(form.ours, form.sdpa, form.softmax, peers.NO_FLEX)
    *leaves, d = ts
    without = Call(forward(attend, leaves) if what == FORWARD else both(attend, leaves, d))
    return form.contest(what, ts, beside={"without": without})


def windows(settings: Settings) -> Iterator[Row]:
    S = 2048 if settings.quick else 8192
    kept = (WINDOW * S - WINDOW * (WINDOW - 1) / 2) / S**2
    for dtype, what in product(PAIR, (FORWARD, BOTH)):
        goals = (FLOOR, within(1.3, "dense", scale=kept))
        work = flops(what, 1, 2, S, 64, causal=False) * kept
        make = partial(window, settings, what, dtype, S)
        yield Row("windows", f"window {WINDOW} {what} {name(dtype)} 1x2x{S}x64", make, dtype, work, goals)


def window(settings: Settings, what: str, dtype: torch.dtype, S: int) -> Contest:
    """Each query sees itself and the 255 keys before it."""
    ts = tensors(1, 2, S, 64, dtype)
    attend = settings.ours
    near = torch.ones(S, S, dtype=torch.bool).tril().triu(1 - WINDOW)

    def keep(b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
        return (n <= m) & (n > m - WINDOW)

    form = Form(
        lambda q, k, v: attend(q, k, v, xfn.bias.local(WINDOW - 1, 0)),
        peers.sdpa(near),
        peers.softmax(near),
        peers.flex(S, S, keep) if settings.flex else peers.NO_FLEX,
    )
    *leaves, d = ts
    dense = Call(forward(attend, leaves) if what == FORWARD else both(attend, leaves, d))
    return form.contest(what, ts, beside={"dense": dense})


def grouped(settings: Settings) -> Iterator[Row]:
    for dtype, what in product(PAIR, (FORWARD, BOTH)):
        gain = faster(1.7 if dtype == torch.float32 else 3.0) if what == FORWARD else FLOOR
        work = flops(what, 1, 16, 1024, 64, causal=True)
        make = partial(shared_heads, settings, what, dtype)
        goals = (gain, within(1.03, "16:16"))  # no slower, as far as the clock can tell
        yield Row("shared heads", f"gqa 16:2 {what} {name(dtype)} causal 1x16x1024x64", make, dtype, work, goals)


def shared_heads(settings: Settings, what: str, dtype: torch.dtype) -> Contest:
    form = plain(settings, 1024, dtype, causal=True)
    *leaves, d = tensors(1, 16, 1024, 64, dtype)
    own = Call(forward(form.ours, leaves) if what == FORWARD else both(form.ours, leaves, d))
    return form.contest(what, tensors(1, 16, 1024, 64, dtype, G=2), beside={"16:16": own})


def dropped(settings: Settings) -> Iterator[Row]:
    S = 512 if settings.quick else 2048
    for dtype in PAIR:
        work = flops(FORWARD, 1, 8, S, 64, causal=False)
        make, goals = partial(dropout, settings, dtype, S), (FLOOR, faster(4.0, 6.0, of="sdpa"))
        yield Row("dropout", f"dropout 0.1 forward {name(dtype)} 1x8x{S}x64", make, dtype, work, goals)


def dropout(settings: Settings, dtype: torch.dtype, S: int) -> Contest:
    attend, key = settings.ours, xfn.random.key(0)
    form = Form(
        lambda q, k, v: attend(q, k, v, None, 0.1, key=key),
        peers.sdpa(p=0.1),
        peers.softmax(p=0.1),
        "flex_attention has no dropout",
    )
    return form.contest(FORWARD, tensors(1, 8, S, 64, dtype), comparable=False)


def decoding(settings: Settings) -> Iterator[Row]:
    long = 8192 if settings.quick else 32768
    for dtype in PAIR:
        for where, (B, H, G, N, D), goal in (
            ("cache", (1, 8, 8, 512, 64), faster(1.5, 2.0)),
            ("cache", (64, 4, 4, 128, 32), faster(1.5, 2.0)),
            ("memory", (1, 8, 8, long, 64), faster(1.0, 1.5)),
            ("memory", (1, 32, 8, long, 64), faster(1.0, 1.5)),
        ):
            goals = (goal, within(1.25, "reading k and v")) if where == "memory" else (goal,)
            title = f"decode from {where} {name(dtype)} {B}x{H}:{G}x{N}x{D}"
            yield Row("decoding", title, partial(decode, settings, dtype, B, H, G, N, D), dtype, goals=goals)


def decode(settings: Settings, dtype: torch.dtype, B: int, H: int, G: int, N: int, D: int) -> Contest:
    """One query to N keys. As many bytes as k and v have, read by a sum, say what the memory gives."""
    ts = tensors(B, H, N, D, dtype, G=G, M=1)
    bytes_read = torch.ones(sum(t.nbytes for t in ts[1:3]) // 4)
    reading = Call(bytes_read.amax)
    return plain(settings, N, dtype, M=1).contest(FORWARD, ts, beside={"reading k and v": reading})


def overhead(settings: Settings) -> Iterator[Row]:
    for what, must in ((FORWARD, 2.0), (BOTH, 1.5)):
        goals = (within(must, "sdpa"), within(1.3, "sdpa", 1.0))
        make = partial(tiny, settings, what)
        yield Row("overhead", f"overhead {what} float32 1x1x16x16", make, torch.float32, goals=goals)


def tiny(settings: Settings, what: str) -> Contest:
    return plain(settings, 16, torch.float32).contest(what, tensors(1, 1, 16, 16, torch.float32))
