"""What is particular to attention: its definition, rows that see nothing, its errors."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, func

import xfn
from xfn import KeyRequired, ShapeError, Unsupported, bias, random
from xfn.ops.attention import ATTENTION

from ..cases import agree, complete
from ..device import gpu
from ..transforms import TRANSFORMS, Point, Transform

BACKENDS = [None, "reference", *complete(ATTENTION)]
backends = pytest.mark.parametrize("backend", BACKENDS)


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


@gpu
@backends
def test_is_its_definition(backend: str | None) -> None:
    """One weight at a time, in Python."""
    q, k, v, b = drawn((3, 4, 2), (5, 2, 2), (5, 2, 3), (4, 3, 5))
    seen = torch.rand(3, 5) > 0.3
    made = bias.dense(b) & bias.dense(seen) & bias.local(3, 2) & bias.alibi(torch.arange(4.0))
    out, lse = xfn.attention_with_lse(q, k, v, made, scale=0.7, backend=backend)
    for m in range(3):
        for h in range(4):
            s = {
                n: 0.7 * (q[m, h] @ k[n, h // 2]) + b[h, m, n] - h * abs(m - n)
                for n in range(5)
                if seen[m, n] and m - 3 <= n <= m + 2
            }
            total = sum(x.exp() for x in s.values())
            agree(out[m, h], sum(x.exp() / total * v[n, h // 2] for n, x in s.items()))
            agree(lse[h, m], total.log())  # type: ignore[union-attr]


@gpu
@backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype: torch.dtype, backend: str | None) -> None:
    q, k, v = drawn((3, 2, 4), (5, 2, 4), (5, 2, 6), dtype=dtype)
    out, lse = xfn.attention_with_lse(q, k, v, torch.randn(3, 5), backend=backend)
    assert (out.dtype, lse.dtype) == (dtype, torch.float64 if dtype == torch.float64 else torch.float32)


@gpu
@backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("wider", [torch.float64, torch.float32, torch.float16], ids=str)
def test_a_bias_has_a_dtype_of_its_own(dtype: torch.dtype, wider: torch.dtype, backend: str | None) -> None:
    q, k, v = drawn((3, 2, 4), (5, 2, 4), (5, 2, 4), dtype=dtype)
    b, slopes = drawn((2, 3, 5), (2,), dtype=wider)
    f = lambda b, slopes, q: xfn.attention(q, k, v, bias.dense(b) + bias.alibi(slopes), backend=backend).float().sum()
    slope = func.grad(f, (0, 1))(b, slopes, q)
    assert [t.dtype for t in slope] == [wider, wider]
    want = func.grad(f, (0, 1))(b.to(dtype), slopes.to(dtype), q)
    low = torch.finfo(dtype).eps + torch.finfo(wider).eps
    for got, wanted in zip(slope, want, strict=True):
        torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=8 * low)


@pytest.mark.parametrize("number", [-1e9, -1e16, -1e30, torch.finfo(torch.float32).min, 1e12])
def test_a_row_that_is_hidden_by_a_large_number_is_an_average(number: float) -> None:
    """As masks were written before there were boolean ones; and in its gradient too."""
    q, k, v = (t.float() for t in drawn((3, 2, 4), (5, 2, 4), (5, 2, 4)))
    b = torch.zeros(3, 5)
    b[1] = number
    f = lambda *x, backend=None: xfn.attention(*x, b, backend=backend).sin().sum()
    for backend in BACKENDS:
        torch.testing.assert_close(xfn.attention(q, k, v, b, backend=backend)[1], v.mean(0))
    want = func.grad(lambda *x: f(*x, backend="reference"), (0, 1, 2))(q, k, v)
    for got, wanted in zip(func.grad(f, (0, 1, 2))(q, k, v), want, strict=True):
        torch.testing.assert_close(got, wanted)
    with pytest.raises(Unsupported, match="hide by −∞ or False"):
        func.grad(lambda *x: f(*x, backend="cpu"))(q, k, v)


def test_shapes_alone_run_on_meta() -> None:
    q = torch.empty(2, 5, 4, 8, device="meta")
    out, lse = xfn.attention_with_lse(q, q, q, bias.causal())
    assert (out.shape, lse.shape) == ((2, 5, 4, 8), (2, 4, 5))


@gpu
@backends
def test_huge_and_tiny_logits_do_not_overflow(backend: str | None) -> None:
    q, k, v = (t.float() for t in drawn((4, 1, 8), (6, 1, 8), (6, 1, 8)))
    for factor in (1e4, 1e-30):
        out, lse = xfn.attention_with_lse(q * factor, k, v, backend=backend)
        wide, wide_lse = xfn.attention_with_lse(q.double() * factor, k.double(), v.double())
        torch.testing.assert_close(out, wide.float(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(lse, wide_lse.float(), rtol=1e-6, atol=1e-6)


@gpu
@backends
def test_what_is_summed_is_near_the_values(backend: str | None) -> None:
    """Large values do not overflow where the first keys are not the best ones."""
    q, k, v = torch.ones(20, 1, 1), torch.zeros(64, 1, 1), torch.full((64, 1, 3), 1e30)
    k[16:] = 20.0
    torch.testing.assert_close(xfn.attention(q, k, v, backend=backend), v[:20])


@backends
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_moves_all_logits_alike_moves_no_weight(dtype: torch.dtype, p: float, backend: str | None) -> None:
    """However far: rounded together with what is left, it would hide that."""
    q, k, v = drawn((200, 2, 64), (300, 2, 64), (300, 2, 64), dtype=dtype)
    f = lambda k, seen: xfn.attention(q, k, v, seen, p=p, key=random.key(0) if p else None, backend=backend)
    for seen in (bias.causal(), bias.local(9, 0), torch.arange(300) % 7 > 0):
        moved = func.jvp(lambda k: f(k, seen), (k,), (torch.full_like(k, 5.0),))[1]
        assert moved.abs().max() < (1e-12 if dtype == torch.float64 else 1e-4)


@backends
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_slopes_of_far_keys_move_no_more_than_near_ones(dtype: torch.dtype, p: float, backend: str | None) -> None:
    """Of 200 queries and 3 keys, a slope's tangent is up to 200, and differs by 2: what is left is still right."""
    slopes, key = torch.full((2,), 0.1), random.key(0) if p else None
    q, k, v = drawn((200, 2, 64), (3, 2, 64), (3, 2, 64), dtype=dtype)

    def moved(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, backend: str | None) -> Tensor:
        f = lambda a: xfn.attention(q, k, v, bias.alibi(a), p=p, key=key, backend=backend)
        return func.jvp(f, (slopes,), (torch.ones_like(slopes),))[1]  # type: ignore[no-any-return]

    want = moved(q.double(), k.double(), v.double(), slopes.double(), "reference")
    agree(moved(q, k, v, slopes, backend).double(), want, 2 * torch.finfo(dtype).eps)


@backends
def test_an_infinite_tangent_of_a_bias_is_that_of_lse(backend: str | None) -> None:
    """Infinite, not NaN: however many keys follow."""
    q, k, v, b, along = (t.float() for t in drawn((9, 1, 4), (300, 1, 4), (300, 1, 4), (9, 300), (9, 300)))
    along[3, 5], along[4, 200] = torch.inf, -torch.inf
    moved = func.jvp(lambda b: xfn.attention_with_lse(q, k, v, b, backend=backend), (b,), (along,))[1][1][0]
    assert (moved[3], moved[4]) == (torch.inf, -torch.inf)
    assert moved[5:].isfinite().all()


def _flat(tree: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(tree) if isinstance(t, Tensor)]


# Rows that see nothing.

BLIND = {
    "mask": torch.tensor([True, False, True])[:, None].expand(3, 4),
    "-inf": torch.tensor([0.0, -torch.inf, 0.0])[:, None].expand(3, 4).double(),
    "bottom-right": bias.span(torch.tensor([0, 2, 0]), torch.tensor([4, 1, 4])),
    "segments": bias.segments([1, 1, 1], [2, 0, 2]),
}


@gpu
@backends
@pytest.mark.parametrize("hidden", BLIND.values(), ids=BLIND)
def test_a_row_that_sees_nothing_is_zero(hidden: Any, backend: str | None) -> None:
    q, k, v = drawn((3, 2, 4), (4, 2, 4), (4, 2, 4))
    f = lambda *x: xfn.attention_with_lse(*x, hidden, backend=backend)
    out, lse = f(q, k, v)
    assert (out[1] == 0).all()
    assert (lse[:, 1] == -torch.inf).all()
    dq, _, _ = func.grad(lambda *x: f(*x)[0].square().sum(), (0, 1, 2))(q, k, v)
    assert (dq[1] == 0).all()
    garbage = q.clone()
    garbage[1] = torch.nan
    for program in (f, func.grad(lambda *x: f(*x)[0].sin().sum(), (1, 2)), lambda *x: func.jvp(f, x, x)):
        for got, want in zip(_flat(program(garbage, k, v)), _flat(program(q, k, v)), strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("transform", [t for t in TRANSFORMS if "export" not in t.__name__], ids=lambda t: t.__name__)
@pytest.mark.parametrize("hidden", BLIND.values(), ids=BLIND)
def test_a_row_that_sees_nothing_is_finite_under_every_transform(hidden: Any, transform: Transform) -> None:
    draw = lambda *lead: tuple(torch.randn(*lead, n, 1, 2, dtype=torch.float64) for n in (3, 4, 4))
    at = Point(draw(), draw(), draw(), draw(3), draw(3))
    f = lambda *x: tuple(torch.where(y == -torch.inf, 0, y) for y in xfn.attention_with_lse(*x, hidden))
    assert all(t.isfinite().all() for t in _flat(transform(f, at)))


@gpu
@backends
def test_nothing_to_see_and_nothing_to_do(backend: str | None) -> None:
    every = (0, 1, 2)
    for B, M, N in ((0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)):
        q, k, v = drawn((B, M, 2, 4), (B, N, 2, 4), (B, N, 2, 5))
        out, lse = xfn.attention_with_lse(q, k, v, bias.causal(), backend=backend)
        assert out.shape == (B, M, 2, 5)
        assert (out == 0).all()
        assert (lse == -torch.inf).all()
        f = lambda *x: xfn.attention(*x, backend=backend).square().sum()
        assert all((g == 0).all() for g in func.jvp(func.grad(f, every), (q, k, v), (q, k, v))[1])


# Gradients by any road.


@gpu
def test_raw_ops_never_give_a_silent_zero() -> None:
    q, k, v = (t.requires_grad_() for t in drawn((3, 2, 4), (4, 2, 4), (4, 2, 4)))
    raw = lambda q, k, v: torch.ops.xfn.attention_forward(q, k, v, None, None, None, None, None, 0.0, 0.5, None)[0]
    want = func.grad(lambda *x: xfn.attention(*x).sin().sum(), (0, 1, 2))(q, k, v)
    agree(func.grad(lambda *x: raw(*x).sin().sum(), (0, 1, 2))(q, k, v), want)
    agree(torch.autograd.grad(raw(q, k, v).sin().sum(), (q, k, v)), want)


@gpu
def test_a_frozen_operand_gets_no_gradient_and_a_bias_gets_its_own() -> None:
    q, k, v, b = drawn((3, 2, 4), (4, 2, 4), (4, 2, 4), (2, 3, 4))
    b.requires_grad_()
    (got,) = torch.autograd.grad(xfn.attention(q, k, v, b).sin().sum(), b)
    agree(got, func.grad(lambda b: xfn.attention(q, k, v, b, backend="reference").sin().sum())(b))


def test_autocast_is_a_cast_of_the_inputs() -> None:
    q, k, v = (t.float() for t in drawn((3, 2, 4), (4, 2, 4), (4, 2, 4)))
    low = [t.bfloat16() for t in (q, k, v)]
    for backend in BACKENDS:
        f = lambda *x: xfn.attention(*x, backend=backend).float().sin().sum()
        with torch.autocast("cpu", torch.bfloat16):
            out, slope = xfn.attention(q, k, v, backend=backend), func.grad(f)(q, k, v)
        assert out.dtype == torch.bfloat16
        assert slope.dtype == torch.float32
        assert torch.equal(out, xfn.attention(*low, backend=backend))
        if backend != "reference":  # torch casts the backward of plain code as well, where it runs under autocast
            assert torch.equal(slope, func.grad(f)(*low).float())


# Errors.

Q, K, V = torch.zeros(2, 5, 4, 8), torch.zeros(2, 7, 2, 8), torch.zeros(2, 7, 2, 6)
KEY = random.key(0)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: xfn.attention(Q, K, V[:, :6]), ShapeError, "v [..., N, G, V] has N=6, but k has N=7"),
        (lambda: xfn.attention(Q, K[..., :7], V), ShapeError, "k [..., N, G, K] has K=7, but q has K=8"),
        (lambda: xfn.attention(Q, K, V[:, :, :1]), ShapeError, "v [..., N, G, V] has G=1, but k has G=2"),
        (
            lambda: xfn.attention(Q[..., :3, :], K, V),
            ShapeError,
            "q has H=3 heads, which G=2 key heads cannot share evenly",
        ),
        (
            lambda: xfn.attention(Q[0, 0], K, V),
            ShapeError,
            "q [..., M, H, K] needs at least 3 dims, but its shape is [4, 8]",
        ),
        (lambda: xfn.attention(Q, K[0, 0], V, bias.causal()), ShapeError, "k [..., N, G, K] needs at least 3 dims"),
        (lambda: xfn.attention(Q, None, V, bias.causal()), TypeError, "k is a NoneType, but must be a torch.Tensor"),
        (lambda: xfn.attention(1.0, K, V), TypeError, "q is a float, but must be a torch.Tensor"),
        (
            lambda: xfn.attention(Q, K.repeat(2, 1, 1, 1)[:3], V),
            ShapeError,
            "k [..., N, G, K] has batch [3], which does not broadcast with the batch [2] of q",
        ),
        (
            lambda: xfn.attention(Q, K, V, torch.zeros(5, 6)),
            ShapeError,
            "bias [..., H, M, N] has N=6, but k has N=7 (1 would broadcast)",
        ),
        (
            lambda: xfn.attention(Q, K, V, torch.zeros(3, 5, 7)),
            ShapeError,
            "bias [..., H, M, N] has H=3, but q has H=4 (1 would broadcast)",
        ),
        (lambda: xfn.attention(Q, K, V, torch.zeros(3, 4, 5, 7)), ShapeError, "bias [..., H, M, N] has batch [3]"),
        (lambda: xfn.attention(Q, K, V, torch.zeros(5, 7).int()), TypeError, "write mask.bool() for a mask"),
        (lambda: xfn.attention(Q, K, V, "causal"), TypeError, "a bias is None, a tensor or a bias.Bias, but got str"),
        (
            lambda: xfn.attention(Q, K, V, bias.alibi(torch.ones(3))),
            ShapeError,
            "alibi [..., H] has H=3, but q has H=4",
        ),
        (
            lambda: xfn.attention(Q, K, V, bias.segments([5, 1])),
            ShapeError,
            "the segments hold 6 queries [5, 1], but q has M=5",
        ),
        (
            lambda: xfn.attention(Q, K.double(), V),
            TypeError,
            "q is torch.float32, but k is torch.float64: write k.to(q.dtype)",
        ),
        (
            lambda: xfn.attention(Q.int(), K.int(), V.int()),
            TypeError,
            "q is torch.int32, but must be one of torch.float64",
        ),
        (lambda: xfn.attention(Q, K, V.to("meta")), ValueError, "q is on cpu, but v is on meta: write v.to(q.device)"),
        (
            lambda: xfn.attention(Q, K, V, torch.zeros(5, 7, device="meta")),
            ValueError,
            "q is on cpu, but bias is on meta",
        ),
        (
            lambda: xfn.attention(Q, K, V, p=0.1),
            KeyRequired,
            "p=0.1 drops attention weights, which needs a key: pass key=random.key(seed)",
        ),
        (
            lambda: xfn.attention(Q, K, V, p=1.0, key=KEY),
            ValueError,
            "p=1.0 is no probability of dropping: it must lie in [0, 1)",
        ),
        (lambda: xfn.attention(Q, K, V, p=-0.1, key=KEY), ValueError, "p=-0.1 is no probability"),
        (lambda: xfn.attention(Q, K, V, p="x"), TypeError, "p is a number, but got 'x'"),
        (
            lambda: xfn.attention(Q, K, V, scale=torch.tensor(1.0)),
            TypeError,
            "scale is a number, but got a tensor, whose gradient would be lost: "
            "write attention(q * scale, k, v, scale=1.0)",
        ),
        (lambda: xfn.attention(Q, K, V, scale=float("nan")), ValueError, "scale=nan is not finite"),
        (lambda: xfn.attention([Q], K, V), TypeError, "q is a list, but must be a torch.Tensor"),
        (lambda: xfn.attention(Q, K, V[..., :0]), ShapeError, "V=0 leaves nothing to attend with"),
        (lambda: xfn.attention(Q, K[:, :, :0], V[:, :, :0]), ShapeError, "G=0 leaves nothing to attend with"),
        (
            lambda: xfn.attention(Q, K, V, p=0.1, key=KEY.to("meta")),
            ValueError,
            "q is on cpu, but key is on meta: write key.to(q.device)",
        ),
        (
            lambda: xfn.attention(Q, K, V, p=0.1, key=random.split(KEY, 3)),
            ShapeError,
            "key has shape [3, 2]: one key is [2], one per example [2, 2]",
        ),
        (
            lambda: xfn.attention(Q, K, V, p=0.1, key=torch.zeros(2)),
            ShapeError,
            "a key is an int64 tensor [2], but got torch.float32 [2]",
        ),
        (
            lambda: xfn.attention(Q, K, V, backend="tile"),
            ValueError,
            "attention has no backend 'tile'; it has ['reference', 'cpu', 'cuda', 'triton', 'aten', 'tiled']",
        ),
        (
            lambda: xfn.attention(Q, K, V, backend="aten"),
            Unsupported,
            "    aten: G=2 key heads are not H=4; V=6 is not K=8\n",
        ),
        (
            lambda: xfn.attention(Q, K, V, backend="aten"),
            Unsupported,
            "no backend can run attention(q[2, 5, 4, 8] float32",
        ),
        (lambda: xfn.attention(Q, K, V, backend="aten"), Unsupported, 'backend="reference" always can, slowly'),
        (
            lambda: func.jvp(lambda q: xfn.attention(q, q, q, backend="aten"), (Q,), (Q,)),
            Unsupported,
            "aten: it has no jvp",
        ),
    ],
)
def test_errors_say_what_to_write(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)):
        call()
