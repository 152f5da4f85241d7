"""Attention over the entries of random patterns, against our dense attention, and against peers with the same mask."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

import xfn
from benchmarks.attention import peers
from benchmarks.attention.grid import flops
from benchmarks.attention.problem import BOTH, FORWARD, Attend, Form, Settings, both, forward, tensors, turned
from benchmarks.contest import Call, Contest, Goal, Row, faster, within
from benchmarks.machine import name
from xfn import bias, random
from xfn.sparsity import Csr

PAIR = (torch.float32, torch.bfloat16)
DENSITIES = (0.01, 0.05, 0.1, 0.25)
TAKEN = 1.3  # how much faster than dense tiles a mask's entries must be to be taken


def rows(settings: Settings) -> Iterator[Row]:
    lengths = (1024,) if settings.quick else (1024, 2048, 4096)
    for S, density, what, dtype in product(lengths, DENSITIES, (FORWARD, BOTH), PAIR):
        goals: tuple[Goal, ...] = ()
        if density <= 0.1:
            goals = (within(1 / TAKEN, "dense"), faster(5.0) if what == FORWARD else faster(3.0))
        title = f"entries {density:.0%} {what} {name(dtype)} 1x8x{S}x64"
        yield row(settings, "entries", title, what, dtype, (1, 8, S, 64), density, goals)
    for density, what, dtype in product((0.01, 0.05), (FORWARD, BOTH), PAIR):
        title = f"mask {density:.0%} {what} {name(dtype)} 1x8x2048x64"
        goals = (within(1 / TAKEN, "dense"), faster(3.0))
        yield row(settings, "masks", title, what, dtype, (1, 8, 2048, 64), density, goals, by_mask=True)
        title = f"entries {density:.0%} {what} {name(dtype)} gqa 8:2 1x8x2048x64"
        yield row(settings, "shared heads", title, what, dtype, (1, 8, 2048, 64), density, goals, G=2)


def row(
    settings: Settings, group: str, title: str, what: str, dtype: torch.dtype, size: tuple[int, int, int, int],
    density: float, goals: tuple[Goal, ...], *, G: int | None = None, by_mask: bool = False,
) -> Row:  # fmt: skip
    make = partial(contest, settings, what, dtype, size, density, G, by_mask)
    return Row(group, title, make, dtype, flops(what, *size, causal=False) * density, goals)


def contest(
    settings: Settings, what: str, dtype: torch.dtype, size: tuple[int, int, int, int], density: float,
    G: int | None, by_mask: bool,
) -> Contest:  # fmt: skip
    B, H, S, D = size
    ts = tensors(B, H, S, D, dtype, G=G)
    mask = random.bernoulli(random.key(1), density, (S, S))

    def keep(b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
        return mask[m, n]

    ours: Attend = partial(xfn.sparse_attention, Csr.from_mask(mask), backend=settings.backend)
    form = Form(
        (lambda q, k, v: settings.ours(q, k, v, mask)) if by_mask else ours,
        peers.sdpa(mask),
        peers.softmax(mask),
        peers.flex(S, S, keep) if settings.flex else peers.NO_FLEX,
    )
    all_keys = bias.dense(mask) & bias.span(0, S)  # a mask that is not alone takes dense tiles
    *leaves, d = ts
    through = lambda q, k, v: settings.ours(q, k, v, all_keys)
    dense = Call(forward(through, leaves) if what == FORWARD else both(through, leaves, d))
    made = form.contest(what, ts, beside={"dense": dense})
    library: Call | str = "torch.sparse has products of float32, forward, and no shared heads"
    if what == FORWARD and dtype == torch.float32 and G is None:
        library = Call(forward(torch_sparse(mask), turned(leaves)), 1)
    return replace(made, peers={**made.peers, "torch.sparse": library})


def torch_sparse(mask: Tensor) -> Attend:
    """torch's own three products over a CSR matrix, one head at a time."""
    pattern = mask.float().to_sparse_csr()

    def head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        s = torch.sparse.sampled_addmm(pattern, q, k.mT, beta=0.0, alpha=q.shape[-1] ** -0.5)
        out: Tensor = torch.sparse.mm(torch.sparse.softmax(s.to_sparse_coo(), -1), v)
        return out

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        flat = [t.flatten(0, 1) for t in (q, k, v)]
        return torch.stack([head(*each) for each in zip(*flat, strict=True)]).view(*q.shape[:-1], v.shape[-1])

    return attend
