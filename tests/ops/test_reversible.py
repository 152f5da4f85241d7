"""A reversible stack is the plain loop over its layers, and holds as many activations at any depth."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func

import xfn
from benchmarks.measure import peak_bytes
from xfn import ShapeError, random, reversible

from ..cases import agree
from ..ledger import compiled
from ..transforms import PLAINLY, TRANSFORMS, Point, Tensors, Transform, grad, vmap_grad
from .test_recompute import NESTS, nest

Params = list[tuple[Any, Any]]


def mix(params: dict[str, Tensor], x: Tensor, gain: Tensor, key: Tensor) -> Tensor:
    q, k, v = ((x * gain @ w).unsqueeze(-2) for w in (params["q"], params["k"], params["q"].sin()))
    return xfn.attention(q, k, v, p=0.4, key=key).squeeze(-2)


def feed(params: list[Any], x: Tensor, gain: Tensor, key: Tensor) -> Tensor:
    waves: Tensor = params[0] * (x @ params[1]).sin() / gain.cosh()
    return waves * (1 + key % 3)


def loop(params: Params, x1: Tensor, x2: Tensor, gain: Tensor, key: Tensor) -> Tensors:
    for i, (pf, pg) in enumerate(params):
        x1 = x1 + mix(pf, x2, gain, random.fold_in(key, 2 * i))
        x2 = x2 + feed(pg, x1, gain, random.fold_in(key, 2 * i + 1))
    return x1, x2


def two(stack: Callable[..., Tensors]) -> Callable[..., Tensors]:
    """Two layers, some of whose parameters are shared, whose streams are one, and whose first has a number."""

    def call(w: Tensor, other: Tensor, x: Tensor, gain: Tensor) -> Tensors:
        params = [({"q": w, "k": other}, [2.0, w]), ({"q": other, "k": w.sin()}, [x, other])]
        return stack(params, x, x, gain, key=random.key(1))

    return call


def point() -> Point:
    draw = lambda *lead: tuple(
        torch.randn(*lead, *shape, dtype=torch.float64) for shape in ((2, 2), (2, 2), (3, 2), (2,))
    )
    return Point(draw(), draw(), draw(), draw(3), draw(3))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: t.__name__)
def test_is_the_loop(transform: Transform) -> None:
    at = point()
    agree(transform(two(reversible(mix, feed)), at), PLAINLY.get(transform, transform)(two(loop), at))


@pytest.mark.parametrize("transforms", NESTS)
def test_every_nest(transforms: str) -> None:
    x, shift = 0.3 * torch.randn(2, 2, 2, dtype=torch.float64)
    f = lambda stack: lambda x: (lambda y1, y2: y1 * y2)(*stack([(x, x.sin()), (x.cos(), x)], x, x, shift))
    agree(nest(transforms, f(reversible(half, half)), x), nest(transforms, f(plain), x))


@pytest.mark.parametrize("transform", [grad, vmap_grad], ids=lambda t: t.__name__)
def test_transforms_of_it_compile(transform: Transform) -> None:
    at = point()
    agree(compiled(transform, two(reversible(mix, feed)), at, "aot_eager"), transform(two(loop), at))


def test_a_compiled_training_step() -> None:
    x = tuple(t.requires_grad_() for t in point().x)
    step = lambda stack: lambda *x: sum(y.square().sum() for y in two(stack)(*x))
    got = torch.compile(step(reversible(mix, feed)), fullgraph=True, backend="aot_eager")(*x)
    agree(torch.autograd.grad(got, x), torch.autograd.grad(step(loop)(*x), x))


def half(p: Tensor, x: Tensor, shift: Tensor) -> Tensor:
    return torch.tanh(x @ p + shift) @ p.T


def plain(params: Params, x1: Tensor, x2: Tensor, shift: Tensor) -> Tensors:
    for pf, pg in params:
        x1 = x1 + half(pf, x2, shift)
        x2 = x2 + half(pg, x1, shift)
    return x1, x2


def _backward(f: Callable[..., Tensor], params: Params, x: Tensor) -> Any:
    leaves = [(pf.clone().requires_grad_(), pg.clone().requires_grad_()) for pf, pg in params]
    return torch.autograd.grad(f(leaves, x), [p for layer in leaves for p in layer])


USES = {
    "backward": _backward,
    "grad": lambda f, params, x: func.grad(f, (0, 1))(params, x),
    "vmap_grad": lambda f, params, x: func.vmap(func.grad(f), (None, 0))(params, x.unflatten(0, (2, -1))),
    "grad_vmap": lambda f, params, x: func.grad(
        lambda params: func.vmap(f, (None, 0))(params, x.unflatten(0, (2, -1))).sum()
    )(params),
    "jvp_grad": lambda f, params, x: func.jvp(func.grad(f), (params, x), (params, x))[1],
    "grad_jvp": lambda f, params, x: func.grad(lambda params: func.jvp(f, (params, x), (params, x))[1])(params),
    "grad_grad": lambda f, params, x: func.grad(
        lambda params: sum(g.square().sum() for layer in func.grad(f)(params, x) for g in layer)
    )(params),
}  # fmt: skip


def peak(use: Callable[..., Any], stack: Callable[..., Tensors], depth: int) -> int:
    """With a tensor as large as the activations behind x, whose gradient is summed over the layers."""
    params = [tuple(torch.randn(2, 8, 8) / 8) for _ in range(depth)]
    f = lambda params, x: sum(y.square().sum() for y in stack(params, x, x, x))
    return peak_bytes(lambda: use(f, params, torch.randn(2**14, 8)))


@pytest.mark.parametrize("name", USES)
def test_activations_take_the_memory_of_two_layers_at_any_depth(name: str) -> None:
    stack = reversible(half, half)
    two, many = peak(USES[name], stack, 2), peak(USES[name], stack, 24)
    assert many < 1.1 * two, f"{many / two:.2f}"


def test_the_measure_sees_activations() -> None:
    assert peak(_backward, plain, 24) > 6 * peak(_backward, plain, 2)


def test_layers_draw_by_keys_of_their_own() -> None:
    """What each f and g is called with, forward and backward."""
    seen: list[list[int]] = []

    def f(p: Tensor, x: Tensor, *, key: Tensor) -> Tensor:
        seen.append(key.tolist())
        return p * x

    key, x = random.key(3), torch.ones(2, requires_grad=True)
    y1, y2 = reversible(f, f)([(x, x), (x, x)], x, x, key=key)
    assert seen == random.split(key, 4).tolist()
    (y1 + y2).sum().backward()
    assert seen[4:] == seen[3::-1]


def test_a_map_over_keys_is_a_loop() -> None:
    at, keys = point().x, random.split(random.key(5), 3)
    params: Params = [({"q": at[0], "k": at[1]}, [1.0, at[0]])] * 2
    loss = lambda x, key: sum(y.sum() for y in reversible(mix, feed)(params, x, x, at[3], key=key))
    agree(func.vmap(func.grad(loss), (None, 0))(at[2], keys), torch.stack([func.grad(loss)(at[2], k) for k in keys]))


def test_an_ensemble_on_one_input_has_hessian_products() -> None:
    """The streams are not mapped where they begin, and are behind the first layer."""
    x, w = torch.randn(3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    f = lambda p, x: (p * x).sin()

    def of(stack: Callable[..., Tensors]) -> Any:
        loss = lambda w: stack([(w, w)], x, x)[1].square().sum()
        both = lambda w: func.vmap(lambda w: stack([(w, w)], x, x)[1])(torch.stack([w, w])).sum(0)
        slope = func.vmap(func.grad(loss))
        return func.jacfwd(slope)(w), func.jvp(slope, (w,), (w,)), func.jvp(func.jacrev(both), (w[0],), (w[1],))

    def plainly(params: Params, x1: Tensor, x2: Tensor) -> Tensors:
        for pf, pg in params:
            x1 = x1 + f(pf, x2)
            x2 = x2 + f(pg, x1)
        return x1, x2

    agree(of(reversible(f, f)), of(plainly), 1e-12)


def test_without_key_and_without_layers() -> None:
    f, x = lambda p, x: p * x, torch.randn(3)
    assert all(map(torch.equal, reversible(f, f)([], x, x + 1), (x, x + 1)))
    y1, y2 = reversible(f, f)([(torch.ones(()), torch.ones(()))], x, x)
    assert torch.equal(y1, x + x)
    assert torch.equal(y2, x + y1)


def test_parameters_learn_where_the_input_is_constant() -> None:
    w, x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True), torch.randn(3, 2, dtype=torch.float64)
    f = lambda w, x: torch.tanh(x @ w)
    y1, y2 = reversible(f, f)([(w, w)], x, x)
    z1 = x + f(w, x)
    agree(torch.autograd.grad((y1 * y2).sum(), w), torch.autograd.grad((z1 * (x + f(w, z1))).sum(), w))


W, X = torch.ones(3), torch.arange(3.0)
SCALE, RANDOM = (lambda p, x: p * x), (lambda p, x: torch.nn.functional.dropout(p * x))


@pytest.mark.parametrize(
    ("error", "call", "text"),
    [
        (ShapeError, lambda: reversible(SCALE, SCALE)([(W, W)], X, X[1:]), r"x1 is \[3\], but x2 is \[2\]"),
        (
            ShapeError,
            lambda: reversible(SCALE, torch.outer)([(W, W)], X, X),
            r"outer must give \[3\], the shape of x1 and x2, but gives \[3, 3\]",
        ),
        (TypeError, lambda: reversible(SCALE, SCALE)([(W, W)], X, X.double()), r"write x2.to\(x1.dtype\)"),
        (
            TypeError,
            lambda: reversible(SCALE, SCALE)([(W, W)], X.half(), X.half()),
            "<lambda> must give a tensor that adds to one of torch.float16, but gives torch.float32",
        ),
        (TypeError, lambda: reversible(SCALE, print)([(W, W)], X, X), "but gives NoneType"),
        (ValueError, lambda: reversible(SCALE, SCALE)([W], X, X), r"params\[0\] must be a pair \(pf, pg\)"),
        (
            ValueError,
            lambda: func.grad(lambda w: reversible(lambda p, x: x * w, SCALE)([(W, W)], X, X)[0].sum())(W),
            "<lambda> and <lambda> uses a tensor that is differentiated and not among its arguments",
        ),
        (
            ValueError,
            lambda: func.grad(lambda w: reversible(SCALE, RANDOM)([(w, w)], X, X)[0].sum())(W),
            "draws from torch's generator",
        ),
    ],
)
def test_errors_say_what_to_write(error: type[Exception], call: Callable[[], Any], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
