"""What is particular to blocksparse attention: it is attention under the layout's mask, and costs what is live."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func

import xfn
from benchmarks.measure import MIB, peak_bytes
from xfn import ShapeError, bias, layout, random
from xfn.layout import Layout
from xfn.ops.blocksparse import BLOCKSPARSE

from ..cases import agree, complete, error
from ..device import gpu
from ..transforms import loss

BACKENDS = complete(BLOCKSPARSE)
backends = pytest.mark.parametrize("backend", BACKENDS)
KEY = random.key(0)
M, N, H = 100, 140, 4

LAYOUTS: dict[str, Callable[[], Layout]] = {
    "dense": lambda: layout.dense(M, N, block=64),
    "causal": lambda: layout.causal(M, N, block=8),
    "bottom-right": lambda: layout.causal(M, N, block=16, corner="bottom-right"),
    "local": lambda: layout.local(M, N, block=32, window=20),
    "strided": lambda: layout.strided(M, N, block=16, stride=10),
    "fixed": lambda: layout.fixed(M, N, block=8, window=32, verts=2, heads=H),
    "random": lambda: layout.random(M, N, block=16, density=0.3, heads=H, key=KEY),
    "global": lambda: layout.global_(M, N, block=16, tokens=[3, 50]),
    "bigbird": lambda: layout.bigbird(M, N, block=16, heads=H, key=KEY),
    "longformer": lambda: layout.longformer(M, N, block=8, causal=True),
    "variable": lambda: layout.variable(M, N, block=16, windows=[1, 2], random=1, key=KEY),
    "mask": lambda: layout.from_mask(random.bernoulli(KEY, 0.1, (M, N)), block=32),
    "masks": lambda: layout.from_mask(random.bernoulli(KEY, 0.02, (H, M, N)), block=8),
    "callback": lambda: layout.dense(M, N, block=128).per_head(H).with_mask(lambda h, m, n: (m + n) % (h + 2) == 0),
    "one tile": lambda: layout.dense(M, N, block=16) & layout.global_(M, N, block=16, tokens=[]) | _one(M, N, 3, 5),
    "no tile": lambda: ~layout.dense(M, N, block=16),
    "last tile": lambda: _one(M, N, 6, 8),
    "empty rows and columns": lambda: ~layout.global_(M, N, block=16, tokens=[20, 70]),
    "transposed": lambda: layout.strided(N, M, block=16, stride=10).transpose(),
}


def _one(M: int, N: int, i: int, j: int) -> Layout:
    blocks = torch.zeros(-(-M // 16), -(-N // 16), dtype=torch.bool)
    blocks[i, j] = True
    return Layout(blocks, 16, (M, N))


def draw(*lead: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    shapes = ((M, H, 8), (N, 2, 8), (N, 2, 5))
    return tuple(torch.randn(*lead, *shape, dtype=torch.float64).to(dtype) for shape in shapes)


def seen(f: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
    """The outputs with zeros where lse is −∞."""
    return lambda *x: tuple(torch.where(y == -torch.inf, 0, y) for y in f(*x))


FEW: dict[str, Callable[[int, int], Layout]] = {
    "dense": lambda M, N: layout.dense(M, N, block=64),
    "small": lambda M, N: layout.random(M, N, block=8, density=0.1, key=KEY),
    "large": lambda M, N: layout.random(M, N, block=128, density=0.4, key=KEY),
    "heads": lambda M, N: layout.random(M, N, block=32, density=0.2, heads=H, key=KEY),
    "bits": lambda M, N: layout.from_mask(random.bernoulli(KEY, 0.001, (M, N)), block=16),
    "some bits": lambda M, N: layout.causal(M, N, block=64) | layout.strided(M, N, block=64, stride=300),
    "masks": lambda M, N: layout.from_mask(random.bernoulli(KEY, 0.01, (H, M, N)), block=8),
    "nothing": lambda M, N: ~layout.dense(M, N, block=16),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("M", "N"), [(1, 2503), (3, 70), (8, 700)])
@pytest.mark.parametrize("name", FEW)
def test_few_queries_see_what_many_do(name: str, M: int, N: int, dtype: torch.dtype) -> None:
    """Also under what else hides, or is added, or drops; the tolerance is that of the reference in the dtype."""
    made = FEW[name](M, N)
    x = [torch.randn(2, n, h, 32).to(dtype) for n, h in ((M, H), (N, 2), (N, 2))]
    exact = [t.double() for t in x]
    for other in (bias.span(5, N - 9), bias.alibi(torch.full((H,), 0.01))):
        more: dict[str, Any] = {"p": 0.2, "key": random.key(1)}
        want = xfn.attention(*exact, other & bias.dense(made.to_mask()), **more, backend="reference")
        rough = xfn.attention(*x, other & bias.dense(made.to_mask()), **more, backend="reference")
        got = xfn.blocksparse_attention(made, *x, other, **more)
        assert error(got, want) <= 3 * error(rough, want) + 32 * torch.finfo(dtype).eps


@gpu
@backends
@pytest.mark.parametrize("name", LAYOUTS)
def test_is_attention_under_the_mask(name: str, backend: str) -> None:
    """Forward and every derivative to second order, with a bias on top."""
    made = LAYOUTS[name]()
    mask = bias.dense(made.to_mask())
    x, t = draw(2), draw(2)
    ours = seen(lambda *x: xfn.blocksparse_attention_with_lse(made, *x, bias.local(90, 30), backend=backend))
    theirs = seen(lambda *x: xfn.attention_with_lse(*x, bias.local(90, 30) & mask, backend="reference"))
    every = (0, 1, 2)
    for program in (
        lambda f: f(*x),
        lambda f: func.grad(loss(f), every)(*x),
        lambda f: func.jvp(f, x, t)[1],
        lambda f: func.jvp(func.grad(loss(f), every), x, t)[1],
        lambda f: func.jvp(lambda *x: func.jvp(f, x, t)[1], x, x)[1],
        lambda f: func.vmap(func.grad(loss(f), every))(*x),
    ):
        agree(program(ours), program(theirs))


@backends
def test_a_key_drops_the_same_weights_as_without_a_layout(backend: str) -> None:
    (q, k, v), made = draw(2), LAYOUTS["random"]()
    got = xfn.blocksparse_attention(made, q, k, v, p=0.4, key=KEY, backend=backend)
    agree(got, xfn.attention(q, k, v, made.to_mask(), 0.4, key=KEY, backend="reference"))
    whole = xfn.blocksparse_attention(layout.dense(M, N, block=32), q, k, v, p=0.4, key=KEY, backend=backend)
    agree(whole, xfn.attention(q, k, v, p=0.4, key=KEY, backend=backend), 1e-14)


@backends
def test_what_is_dead_is_zero_and_gets_zero(backend: str) -> None:
    made = LAYOUTS["empty rows and columns"]()
    q, k, v = draw()
    f = lambda *x: xfn.blocksparse_attention_with_lse(made, *x, backend=backend)
    out, lse = f(q, k, v)
    dq, dk, dv = func.grad(lambda *x: f(*x)[0].sin().sum(), (0, 1, 2))(q, k, v)
    for rows in (slice(16, 32), slice(64, 80)):
        assert (out[rows] == 0).all()
        assert (lse[:, rows] == -torch.inf).all()
        assert not dq[rows].any()
        assert not dk[rows].any()
        assert not dv[rows].any()
    spoilt = [t.clone() for t in (q, k, v)]
    for t in spoilt:
        t[16:32] = torch.nan
    for got, want in zip(f(*spoilt), (out, lse), strict=True):
        assert torch.equal(got, want)


@backends
def test_a_bias_gets_its_gradient_in_live_tiles(backend: str) -> None:
    made, x = LAYOUTS["random"](), draw(2)
    for shape in ((H, M, N), (1, M, N), (2, H, 1, N), (1, M, 1)):
        b = torch.randn(shape, dtype=torch.float64)
        slope = func.grad(lambda b: xfn.blocksparse_attention(made, *x, b, backend=backend).sin().sum())(b)
        full = lambda b: xfn.attention(*x, bias.dense(made.to_mask()) & bias.dense(b), backend="reference").sin().sum()
        agree(slope, func.grad(full)(b))


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_follows_what_is_live(backend: str) -> None:
    """At 8192 × 8192 a matrix of logits is 256 MiB, and a mask is 64."""
    made = layout.local(8192, block=64, window=256)
    x = tuple(torch.randn(8192, 1, 64) for _ in range(3))
    step = func.grad(lambda *x: xfn.blocksparse_attention(made, *x, backend=backend).square().sum(), (0, 1, 2))
    peak = peak_bytes(lambda: func.jvp(step, x, x))
    assert peak < 32 * MIB, f"{peak / MIB:.1f} MiB"


# Errors.

Q, K = torch.zeros(2, 64, 4, 8), torch.zeros(2, 96, 2, 8)
RIGHT = layout.dense(64, 96, block=16)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (
            lambda: xfn.blocksparse_attention(layout.dense(64, 64, block=16), Q, K, K),
            ShapeError,
            "the layout is of M=64 and N=64, but q has M=64 and k has N=96",
        ),
        (
            lambda: xfn.blocksparse_attention(layout.dense(48, 96, block=16), Q, K, K),
            ShapeError,
            "the layout is of M=48 and N=96, but q has M=64 and k has N=96",
        ),
        (
            lambda: xfn.blocksparse_attention(RIGHT.per_head(2), Q, K, K),
            ShapeError,
            "the layout has H=2, but q has H=4 (1 would be shared)",
        ),
        (
            lambda: xfn.blocksparse_attention(RIGHT.to_mask(), Q, K, K),
            TypeError,
            "a layout is an xfn.layout.Layout, but got Tensor: write layout.from_mask(mask)",
        ),
        (
            lambda: xfn.blocksparse_attention(RIGHT.to("meta"), Q, K, K),
            ValueError,
            "q is on cpu, but the layout is on meta: write layout.to(q.device)",
        ),
        (lambda: xfn.blocksparse_attention(RIGHT, 1, K, K), TypeError, "q is a int, but must be a torch.Tensor"),
        (
            lambda: xfn.blocksparse_attention(RIGHT, Q, K, None),
            TypeError,
            "v is a NoneType, but must be a torch.Tensor",
        ),
        (
            lambda: xfn.blocksparse_attention(RIGHT, Q, K, K, torch.ones(64, 64).bool()),
            ShapeError,
            "bias [..., H, M, N] has N=64, but k has N=96 (1 would broadcast)",
        ),
        (lambda: xfn.blocksparse_attention(RIGHT, Q, K, K, p=0.1), xfn.KeyRequired, "pass key=random.key(seed)"),
        (
            lambda: xfn.blocksparse_attention(RIGHT, Q, K, K, backend="aten"),
            ValueError,
            "blocksparse has no backend 'aten'; it has ['reference', 'cpu', 'triton', 'tiled']",
        ),
    ],
)
def test_errors_say_what_to_write(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)):
        call()
