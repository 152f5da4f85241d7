"""``python -m benchmarks.howto``: what the pages of docs/howto say that things cost, each way beside the others.

Milliseconds are CPU time of the calling thread with one thread, the median of calls that took turns; MiB are the peak
beyond inputs and results, at torch's allocator. The ways of a group return the same, which is checked.
"""

import argparse
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves

import xfn
from benchmarks.attention import peers
from benchmarks.measure import MIB, interleaved, peak_bytes
from xfn import bias, layout, patterns, random

Attend = Callable[..., Tensor]
Ways = dict[str, Callable[[], Any]]


def turned(attend: Attend) -> Attend:
    """An attention on [..., H, S, D] as one on [..., S, H, D]."""
    return lambda *x: attend(*(t.transpose(-3, -2) for t in x)).transpose(-3, -2)


OURS: Attend = xfn.attention
OTHERS = {"softmax by hand": turned(peers.softmax()), "torch's SDPA": turned(peers.sdpa())}


def per_example_gradients(small: bool) -> Iterator[Ways]:
    B, M, H, K = (4, 16, 2, 8) if small else (64, 128, 4, 32)
    x, w = random.normal(random.key(0), (B, M, H * K)), random.normal(random.key(1), (H * K, 3 * H * K)) / 11

    def loss(attend: Attend) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda w, x: attend(*(x @ w).unflatten(-1, (3, H, K)).unbind(-3)).square().mean()

    def mapped(attend: Attend) -> Callable[[], Tensor]:
        return lambda: vmap(grad(loss(attend)), (None, 0))(w, x)

    yield {
        "xfn, vmap(grad)": mapped(OURS),
        "xfn, a loop of grad": lambda: torch.stack([grad(loss(OURS))(w, one) for one in x]),
        **{f"{name}, vmap(grad)": mapped(attend) for name, attend in OTHERS.items()},
    }
    yield {"xfn, one gradient for all of them": lambda: grad(loss(OURS))(w, x)}


def _operands(small: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    M, H, K = (32, 2, 8) if small else (1024, 4, 64)
    at, along = random.normal(random.key(0), (2, 3, M, H, K)).unbind(0)
    return at.unbind(0), along.unbind(0)


def jvp_in_a_loss(small: bool) -> Iterator[Ways]:
    at, along = _operands(small)

    def tangent(attend: Attend, *x: Tensor) -> Any:
        return jvp(attend, x, along)

    def slope(attend: Attend, *x: Tensor) -> Any:
        return grad(lambda *x: sum(y.square().sum() for y in tangent(attend, *x)), (0, 1, 2))(*x)

    attentions = {"xfn": OURS, "softmax by hand": OTHERS["softmax by hand"]}
    yield {f"{name}, value": partial(attend, *at) for name, attend in attentions.items()}
    yield {f"{name}, jvp": partial(tangent, attend, *at) for name, attend in attentions.items()}
    yield {f"{name}, gradient of a jvp": partial(slope, attend, *at) for name, attend in attentions.items()}


def curvature(small: bool) -> Iterator[Ways]:
    at, along = _operands(small)
    x, t = torch.stack(at), torch.stack(along)

    def loss(attend: Attend) -> Callable[[Tensor], Tensor]:
        return lambda x: attend(*x.unbind(0)).square().sum()

    def nests(f: Callable[[Tensor], Tensor]) -> Ways:
        return {
            "jvp(grad)": lambda: jvp(grad(f), (x,), (t,))[1],
            "grad(jvp)": lambda: grad(lambda x: jvp(f, (x,), (t,))[1])(x),
            "grad(grad)": lambda: grad(lambda x: (grad(f)(x) * t).sum())(x),
            "vjp(grad)": lambda: vjp(grad(f), x)[1](t)[0],
        }

    by_hand = nests(loss(OTHERS["softmax by hand"]))
    yield {f"xfn, {name}": run for name, run in nests(loss(OURS)).items()} | {
        f"softmax by hand, {name}": by_hand[name] for name in ("jvp(grad)", "grad(grad)")
    }


def ensembles(small: bool) -> Iterator[Ways]:
    P, B, M = (2, 2, 8) if small else (8, 8, 64)
    config = xfn.Encoder(xfn.Dims(model=32, heads=4, length=M, vocab=64), layers=2, causal=True)
    init, apply = xfn.build(config)
    keys, tokens = random.split(random.key(0), P), random.randint(random.key(1), (B, M), 0, 64)
    together, each = vmap(init)(keys), [init(key) for key in keys]

    def loss(params: Any) -> Any:
        return apply(params, tokens)[0].log_softmax(-1).square().mean()

    yield {
        f"{P} models, value, vmap": lambda: vmap(loss)(together),
        f"{P} models, value, a loop": lambda: torch.stack([loss(params) for params in each]),
    }
    yield {
        f"{P} models, gradient, vmap": lambda: vmap(grad(loss))(together)["layers"]["0"]["attention"]["q"]["weight"],
        f"{P} models, gradient, a loop": lambda: torch.stack(
            [grad(loss)(params)["layers"]["0"]["attention"]["q"]["weight"] for params in each]
        ),
    }


def ragged_batches(small: bool) -> Iterator[Ways]:
    lengths, H, K = [32 * n // (8 if small else 1) for n in (1, 2, 2, 3, 4, 6, 10, 20)], 4, 64
    longest, ends = max(lengths), torch.tensor(lengths).cumsum(0).tolist()
    packed = random.normal(random.key(0), (3, sum(lengths), H, K))
    padded = packed.new_zeros(3, len(lengths), longest, H, K)
    for i, (start, end) in enumerate(pairwise([0, *ends])):
        padded[:, i, : end - start] = packed[:, start:end]
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]  # [B, N]
    documents, span = bias.segments(lengths), bias.span(0, torch.tensor(lengths)[:, None])

    def value_and_gradient(attend: Attend, x: Tensor) -> Callable[[], Tensor]:
        leaf, whole = x.clone().requires_grad_(), x is packed

        def run() -> Tensor:
            out = attend(*leaf.unbind(0))
            (slope,) = torch.autograd.grad((out if whole else out[real]).square().sum(), leaf)
            return slope if whole else slope[:, real]

        return run

    mask = real[:, None, None, :]
    yield {
        "xfn, packed": value_and_gradient(lambda *x: OURS(*x, documents), packed),
        "xfn, padded": value_and_gradient(lambda *x: OURS(*x, span), padded),
        "softmax by hand, padded": value_and_gradient(turned(peers.softmax(mask)), padded),
        "torch's SDPA, padded": value_and_gradient(turned(peers.sdpa(mask)), padded),
        "xfn, a loop": value_and_gradient(
            lambda *x: torch.cat([OURS(*parts) for parts in zip(*(t.split(lengths) for t in x), strict=True)]), packed
        ),
    }


def block_sparse(small: bool) -> Iterator[Ways]:
    side, block, H, K = (8, 8, 2, 8) if small else (48, 64, 8, 64)
    M = side * side
    mask = patterns.local_2d(side, side, distance=4) | patterns.global_token(torch.arange(M) < 8)
    tiles = layout.from_mask(mask, block)
    q, k, v = random.normal(random.key(0), (3, M, H, K))
    both: Callable[[Attend], Callable[[], Any]] = lambda f: lambda: grad(lambda q: f(q, k, v).square().sum())(q)
    yield {
        f"xfn, a layout, {tiles.density:.0%} of the tiles": both(lambda *x: xfn.blocksparse_attention(tiles, *x)),
        f"xfn, the mask, {mask.float().mean():.0%} of the pairs": both(lambda *x: OURS(*x, mask)),
        "softmax by hand": both(turned(peers.softmax(mask))),
        "torch's SDPA": both(turned(peers.sdpa(mask))),
    }
    yield {"xfn, without the mask": both(OURS)}


HOWTO = Path(__file__).parent.parent / "docs" / "howto"
HEAD = "| | ms | MiB |\n|---|---|---|"
TABLE = re.compile(re.escape(HEAD) + r"\n(\|.*\n)*")
PAGES = {
    f.__name__: f for f in (per_example_gradients, jvp_in_a_loss, curvature, ensembles, ragged_batches, block_sparse)
}


def table(ways: Ways, rounds: int) -> Iterator[str]:
    """A line for each way, once all agree."""
    first, *others = ([t.double() for t in tree_leaves(run())] for run in ways.values())
    for name, other in zip(list(ways)[1:], others, strict=True):
        for one, two in zip(first, other, strict=True):
            assert torch.allclose(one, two, rtol=1e-3, atol=1e-4 * one.abs().amax().item()), f"{name} returns another"
    samples = interleaved(list(ways.values()), time.thread_time, rounds, [1] * len(ways))
    for (name, run), taken in zip(ways.items(), samples, strict=True):
        found = statistics.median(taken) * 1e3, peak_bytes(run) / MIB
        yield f"| {name} | {' | '.join(f'{n:.3g}' if n < 1000 else f'{n:,.0f}' for n in found)} |"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.howto", description=(__doc__ or "").split("\n\n")[-1])
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"by default all: {', '.join(PAGES)}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once: a smoke test")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="put the tables on their pages")
    asked = parser.parse_args(given)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for page in asked.pages or PAGES:
        rounds = 1 if asked.quick else asked.rounds
        lines = [HEAD, *(line for ways in PAGES[page](asked.quick) for line in table(ways, rounds))]
        print("\n".join(["", page, "", *lines]))
        if asked.write:
            path = HOWTO / f"{page}.md"
            path.write_text(TABLE.sub("\n".join([*lines, ""]), path.read_text()))


if __name__ == "__main__":
    main()
