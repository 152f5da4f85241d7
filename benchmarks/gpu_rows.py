"""The rows of a GPU's table, with what is asked of each: a must, a goal, and the limit that physics sets."""

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from torch import Tensor, func
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils import _pytree as tree

import xfn
from benchmarks import gpu_parts
from benchmarks.attention import peers
from benchmarks.attention.grid import flops
from benchmarks.attention.problem import BOTH, FORWARD, Attend
from benchmarks.contest import Call, Contest
from benchmarks.gpu_calls import (
    Row,
    Turns,
    Where,
    aims,
    alone,
    at_most,
    bandwidth,
    flex,
    flex_bias,
    match,
    pulled,
    sdpa,
    varlen,
)
from xfn import bias, layout, patterns, random
from xfn.layout import Layout
from xfn.sparsity import Csr

Size = tuple[int, int, int, int]
MASKS: dict[bool, Any] = {False: lambda: None, True: bias.causal}

DENSE = {
    128: aims(flash=(1.15, 1.55, 2.0), flex=(1.1, 1.4), cudnn=(0.7, 0.95, 1.3)),
    64: aims(flash=(1.15, 1.45, 1.9), flex=(1.15, 1.4), cudnn=(0.9, 1.15, 1.5)),
}
CAUSAL = {
    128: aims(flash=(1.0, 1.45, 1.9), flex=(1.2, 1.7), cudnn=(0.65, 0.95, 1.25)),
    64: aims(flash=(1.05, 1.4, 1.8), flex=(1.25, 1.7), cudnn=(0.75, 1.0)),
}
TILES: dict[tuple[int, str], dict[float, tuple[float, ...]]] = {
    (128, FORWARD): {0.5: (2.1, 2.8, 3.8), 0.25: (4.0, 5.5, 7.6), 0.1: (8.0, 12.0, 19.0), 0.05: (13.0, 19.0, 36.0)},
    (128, BOTH): {0.5: (1.8, 2.5), 0.25: (3.4, 4.8), 0.1: (7.0, 10.0), 0.05: (11.0, 16.0)},
    (64, FORWARD): {0.5: (1.7, 2.2), 0.25: (3.3, 4.2), 0.1: (7.0, 9.0), 0.05: (11.0, 15.0)},
    (32, FORWARD): {0.5: (0.95,), 0.25: (1.5,), 0.1: (3.5, 4.5, 4.8), 0.05: (6.0, 8.0, 9.5)},
    (16, FORWARD): {0.5: (0.95,), 0.25: (1.0,), 0.1: (1.8, 2.3, 2.4), 0.05: (3.5, 4.5, 4.8)},
}
FLEX = {(128, FORWARD): (1.15, 1.5), (128, BOTH): (1.3, 1.8)}


def rows(where: Where) -> Iterator[Row]:
    for D, S in product((128, 64), (4096, 16384)):
        yield dense(where, FORWARD, S, D, False, DENSE[D])
        yield dense(where, BOTH, S, D, True, CAUSAL[D])
    for D in (128, 64):
        yield Row("hopper", f"forward dense, {D} features", partial(gluon, where, D), aims(triton=(1.0, 1.25)))
    for what, kind in ((FORWARD, torch.float32), (BOTH, torch.float32), (FORWARD, torch.bfloat16)):
        asked = aims(triton=(1.0, 1.5)) if kind == torch.float32 else ()
        yield Row("few", f"{what} of 8 features, 4x256x4096x8, {kind}", partial(few, where, what, kind), asked)
    yield Row("bias", "forward 8x16x2048x128", partial(biased, where, FORWARD), aims(
        efficient=(1.8, 2.5), flex=(1.1, 1.4), cudnn=(0.9, 1.1)))  # fmt: skip
    yield Row("bias", "forward+backward 8x16x2048x128", partial(biased, where, BOTH), (
        *aims(efficient=(2.0, 3.5), flex=(3.0, 10.0)), *at_most(no_bias=(1.45, 1.45, 1.2))))  # fmt: skip
    for (block, what), by in TILES.items():
        for density, against in by.items():
            tiles = partial(layout.random, block=block, density=density, key=random.key(0))
            more = aims(flex=FLEX[block, what]) if (block, what) in FLEX else ()
            run = partial(tiled, where, what, tiles, 8192)
            yield Row("layouts", f"{what} of tiles of {block}, {density:.0%}", run, (*aims(flash=against), *more))
    run = partial(tiled, where, FORWARD, partial(layout.bigbird, block=64, key=random.key(0)), 16384)
    yield Row("layouts", "forward, some rows see all", run, aims(flex=(1.5, 2.5, 3.2)))
    for left in (512, 1024):
        yield Row("windows", f"forward, {left} behind, 1x16x16384x128", partial(window, where, left), aims(
            flex=(1.2, 1.5), efficient=(8.0,)))  # fmt: skip
    yield Row("packed", "forward+backward of 16384 tokens", partial(packed, where), aims(
        varlen=(1.05, 1.4), flex=(1.2, 1.6)))  # fmt: skip
    yield from builds(where)
    yield from transforms(where)
    yield from entries(where)
    yield from decoding(where)
    yield from gpu_parts.rows(where)
    yield from seeds(where)


def work(what: str, size: Size, causal: bool = False, share: float = 1.0) -> dict[str, float]:
    return {"TFLOP/s": share * flops(what, *size, causal=causal) / 1e12}


def dense(where: Where, what: str, S: int, D: int, causal: bool, asked: Any) -> Row:
    size = where.sized(S, D)
    ours: Attend = lambda q, k, v: xfn.attention(q, k, v, MASKS[causal]())
    make = lambda: match(
        where,
        pulled(what),
        where.tensors(*size),
        ours,
        sdpa("flash", "cudnn", causal=causal) | flex(where, size[2], size[2], keep=peers.earlier if causal else None),
    )
    name = f"{what} {'causal' if causal else 'dense'} {'x'.join(map(str, size))}"
    return Row("dense", name, make, asked, work(what, size, causal))


def gluon(where: Where, D: int) -> Contest:
    """The kernel that only devices of compute capability 9.0 have, against the one of all; elsewhere they are one."""
    config: Any = importlib.import_module("xfn.kernels.triton.attention.config") if find_spec("triton") else None

    def without(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        before, config.HOPPER = config.HOPPER, False
        try:
            return xfn.attention(q, k, v)
        finally:
            config.HOPPER = before

    ts = where.tensors(*where.sized(4096, D))
    plain, made = (match(where, pulled(FORWARD), ts, f, {}) for f in (without, xfn.attention))
    absent = {"triton": "triton is not installed"}
    return Contest(made.ours, absent) if config is None else Contest(made.ours, {}, {"triton": plain.ours})


def few(where: Where, what: str, dtype: torch.dtype) -> Contest:
    """CUDA's kernels of few features against Triton's, whichever is the first choice."""
    ts = [t.to(dtype) for t in where.tensors(*where.sized(4096, 8))]
    both = (partial(xfn.attention, backend=None if where.dry else name) for name in ("cuda", "triton"))
    made, plain = (match(where, pulled(what), ts, f, sdpa("efficient")) for f in both)
    return Contest(made.ours, made.peers, {"triton": plain.ours})


def biased(where: Where, what: str) -> Contest:
    size = where.sized(2048, 128)
    _, H, S, _ = size
    added = torch.randn(H, S, S, generator=torch.Generator().manual_seed(1)).to(where.device, torch.bfloat16)
    theirs = sdpa("efficient", "cudnn") | flex_bias(where)
    made = match(where, pulled(what), where.tensors(*size), xfn.attention, theirs, more=[added])
    plain = match(where, pulled(what), where.tensors(*size), xfn.attention, {})
    return Contest(made.ours, made.peers, {"no bias": plain.ours})


def tiled(where: Where, what: str, tiles: Callable[[int], Layout], S: int) -> Contest:
    """The whole, with nothing hidden, is what flash takes: no peer, for its numbers are others."""
    size = where.sized(S, 128)
    here = tiles(size[2]).to(where.device)
    ours: Attend = lambda q, k, v: xfn.blocksparse_attention(here, q, k, v)
    rival = flex(where, size[2], size[2], block_mask=layout.to_block_mask(here)) if here.block >= 64 else {}
    return match(where, pulled(what), where.tensors(*size), ours, rival, beside=sdpa("flash", "cudnn"))  # type: ignore[arg-type]


def window(where: Where, left: int) -> Contest:
    size = where.sized(16384, 128)
    S, left = size[2], left if not where.dry else 8
    mask = bias.local(left, 0)
    near = lambda b, h, m, n: (n <= m) & (n >= m - left)
    there = torch.ones(S, S, dtype=torch.bool, device=where.device).tril().triu(-left)
    theirs = sdpa("efficient", mask=there) | flex(where, S, S, keep=near)
    ours: Attend = lambda q, k, v: xfn.attention(q, k, v, mask)
    return match(where, pulled(FORWARD), where.tensors(*size), ours, theirs)


def packed(where: Where) -> Contest:
    """Sequences whose lengths are even in their logarithm; flex makes its mask anew, as each batch has another."""
    total = where.sized(16384, 128)[2]
    lengths: list[int] = []
    for u in random.uniform(random.key(2), (total,)).tolist():
        least = min(64, total // 8)
        lengths.append(min(int(least * (total / 4 / least) ** u), total - sum(lengths)))
        if sum(lengths) == total:
            break
    size = (1, *where.sized(total, 128)[1:2], total, where.sized(total, 128)[3])
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(where.device)

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        same = lambda b, h, m, n: document[m] == document[n]
        out: Tensor = anew(q, k, v, block_mask=create_block_mask(same, None, None, total, total, device=where.device))
        return out

    anew: Any = flex_attention if where.dry else torch.compile(flex_attention, dynamic=False)
    ours: Attend = lambda q, k, v: xfn.attention(q, k, v, bias.segments(lengths))
    theirs: dict[str, Attend | str] = varlen(lengths, where.device) | {"flex": masked}
    return match(where, pulled(BOTH), where.tensors(*size), ours, theirs)


def builds(where: Where) -> Iterator[Row]:
    H, n, S = (2, 4, 256) if where.dry else (16, 128, 8192)
    units = {"microseconds": 1e-6}
    asked = [at_most(microseconds=tiers) for tiers in ((200, 30), (300, 60))]

    def from_tiles() -> Contest:
        blocks = random.bernoulli(random.key(0), 0.2, (H, n, n)).to(where.device)
        return alone(where, lambda: tree.tree_leaves(Layout(blocks, 128, (128 * n, 128 * n))))

    def from_mask() -> Contest:
        mask = random.bernoulli(random.key(0), 0.01, (S, S)).to(where.device)
        return alone(where, lambda: tree.tree_leaves(layout.from_mask(mask, 128)))

    yield Row(
        "building", f"a layout of {H} heads from {n}x{n} tiles", from_tiles, at_most(microseconds=(200, 30)), units
    )
    yield Row("building", f"a layout from a mask of {S}x{S}", from_mask, asked[1], units)


def transforms(where: Where) -> Iterator[Row]:
    """Tangents, against torch's plain path, which alone has them; and Hessian-vector products."""

    def push(f: Attend, ts: Sequence[Tensor], d: Tensor) -> Callable[[], Any]:
        return lambda: func.jvp(f, tuple(ts), tuple(t.flip(-1) for t in ts))

    def bend(f: Attend, ts: Sequence[Tensor], d: Tensor) -> Callable[[], Any]:
        slopes = func.grad(lambda *ts: (f(*ts) * d).float().sum(), (0, 1, 2))
        return lambda: func.jvp(slopes, tuple(ts), tuple(t.flip(-1) for t in ts))

    def pushed(size: Size) -> Contest:
        ts = where.tensors(*size)
        made = match(where, push, ts, xfn.attention, sdpa("math"))
        own = match(where, pulled(FORWARD), ts, xfn.attention, {})
        return Contest(made.ours, made.peers, {"forward": own.ours})

    for (S, D), against in {(2048, 64): (10.0,), (4096, 64): (10.0, 25.0), (4096, 128): (10.0, 25.0)}.items():
        size = where.sized(S, D)
        asked = (*at_most(forward=(4.0, 3.2, 3.0)), *aims(math=against, **{"TFLOP/s": (150.0, 400.0)}))
        units = work(FORWARD, size, share=3)
        yield Row("transforms", f"jvp {'x'.join(map(str, size))}", partial(pushed, size), asked, units)
    size = where.sized(4096, 128)
    make = lambda: match(where, bend, where.tensors(*size), xfn.attention, {})
    asked = aims(**{"TFLOP/s": (120.0, 220.0)})
    yield Row("transforms", f"hvp {'x'.join(map(str, size))}", make, asked, work(FORWARD, size, share=6))


def entries(where: Where) -> Iterator[Row]:
    """Coefficients at random, and patterns that have a structure."""
    size = where.sized(4096, 64)
    S = size[2]
    side = math.isqrt(S)

    def drawn(density: float) -> Tensor:
        return random.bernoulli(random.key(1), density, (S, S))

    cases: Mapping[str, tuple[Callable[[], Tensor], Any]] = {
        "random, 10 %": (lambda: drawn(0.1), aims(efficient=(1.5, 2.5), flash=(1.1, 1.1))),
        "random, 5 %": (lambda: drawn(0.05), aims(efficient=(1.5, 2.5), flash=(1.1, 1.1))),
        "random, 1 %": (lambda: drawn(0.01), aims(efficient=(2.5, 4.0), flash=(1.5, 1.5))),
        "a disc on a grid, 5 %": (lambda: patterns.local_2d(side, side, 8.0), aims(flash=(3.0, 7.0))),
        "axes of a grid, 3 %": (lambda: patterns.axial_2d(side, side), aims(flash=(3.0, 7.0))),
        "a disc on a grid, 1 %": (lambda: patterns.local_2d(side, side, 3.6), aims(flash=(6.0, 15.0))),
    }

    def made(mask: Callable[[], Tensor]) -> Contest:
        there = mask()
        csr = tree.tree_map(lambda t: t.to(where.device), Csr.from_mask(there))
        ours: Attend = lambda q, k, v: xfn.sparse_attention(csr, q, k, v)
        theirs = sdpa("efficient", mask=there.to(where.device))
        return match(where, pulled(FORWARD), where.tensors(*size), ours, theirs, beside=sdpa("flash"))  # type: ignore[arg-type]

    for name, (mask, asked) in cases.items():
        yield Row("entries", f"forward, {name}", partial(made, mask), asked)


def decoding(where: Where) -> Iterator[Row]:
    B, H, G, S, D = (2, 4, 2, 64, 16) if where.dry else (16, 32, 8, 8192, 128)

    def made(M: int) -> Contest:
        ts = where.tensors(B, H, S, D, G=G, M=M)
        return match(where, pulled(FORWARD), ts, xfn.attention, sdpa("flash", "cudnn"))

    for M in (1, 16):
        units = {"bandwidth": 4.0 * B * S * G * D / bandwidth(where)}
        asked = aims(cudnn=(0.9,), bandwidth=(0.7, 0.85, 1.0))
        yield Row("decoding", f"{M} of {B}x{H}:{G}x{S}x{D}", partial(made, M), asked, units)


def seeds(where: Where) -> Iterator[Row]:
    """The memory of two programs that are known for theirs, beyond what they are given and give."""
    S = 128 if where.dry else 2048

    def causal_tiles() -> Contest:
        here = layout.causal(S, block=32).to(where.device)
        *ts, d = (t.half() for t in where.tensors(2, 8, S, 128))
        run = pulled(BOTH)(lambda q, k, v: xfn.blocksparse_attention(here, q, k, v, bias.causal()), ts, d)
        return Contest(Call(Turns([run], False)), {})

    def sparse_mask() -> Contest:
        size = (16, 1, S // 2, S // 2)
        *ts, d = (t.float() for t in where.tensors(*size))
        csr = Csr.from_mask(random.bernoulli(random.key(0), 0.1, (S // 2, S // 2)))
        csr = tree.tree_map(lambda t: t.to(where.device), csr)
        return Contest(Call(Turns([pulled(FORWARD)(lambda *x: xfn.sparse_attention(csr, *x), ts, d)], False)), {})

    units, name = {"MB": 1e6}, "causal tiles of 32, 2x8x2048x128, forward+backward"
    yield Row("memory", name, causal_tiles, at_most(MB=(100, 80, 60)), units, memory=True)
    name = "a mask of 10 %, 16x1x1024x1024, forward"
    yield Row("memory", name, sparse_mask, at_most(MB=(200, 150, 135)), units, memory=True)
