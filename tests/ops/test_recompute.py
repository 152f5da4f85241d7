"""recompute(f) is f, under every transform, and keeps its inputs alone."""

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.fx.experimental.proxy_tensor import make_fx

import xfn
from benchmarks.measure import peak_bytes
from xfn import random, recompute
from xfn._core.functions import captured

from ..cases import agree
from ..ledger import compiled
from ..transforms import TRANSFORMS, Point, Tensors, Transform, grad, vmap_grad

DIFFERENTIATED = "differentiated and not among its arguments"


def mlp(params: dict[str, Any], x: Tensor, *, double: bool) -> dict[str, Any]:
    hidden = torch.tanh(x @ params["up"]) * params["gates"][0]
    return {"y": x + hidden @ params["down"] * (2 if double else 1), "size": hidden.square().sum(), "top": x.argmax()}


def of_mlp(f: Callable[..., dict[str, Any]]) -> Callable[..., Tensors]:
    def call(up: Tensor, down: Tensor, gate: Tensor, x: Tensor) -> Tensors:
        params = {"up": up, "down": down, "gates": [gate, "unused"]}
        first = f(params, x, double=True)
        return first["y"], f({**params, "down": first["size"] * down}, first["y"], double=False)["y"]

    return call


def of_attention(f: Callable[..., Tensors]) -> Callable[..., Tensors]:
    return lambda q, k, v: f(q, k, v, p=0.3, key=random.key(1))


SUBJECTS: dict[str, tuple[Any, Any, Any]] = {
    "mlp": (of_mlp, mlp, ((2, 3), (3, 2), (3,), (4, 2))),
    "attention": (of_attention, xfn.attention_with_lse, ((3, 2, 2), (4, 2, 2), (4, 2, 2))),
}


def pair(name: str) -> tuple[Callable[..., Tensors], Callable[..., Tensors], Point]:
    """A function that recomputes, the plain one, and where to compare them."""
    call, f, shapes = SUBJECTS[name]
    draw = lambda *lead: tuple(torch.randn(*lead, *shape, dtype=torch.float64) for shape in shapes)
    return call(recompute(f)), call(f), Point(draw(), draw(), draw(), draw(3), draw(3))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: t.__name__)
@pytest.mark.parametrize("name", SUBJECTS)
def test_is_the_function(name: str, transform: Transform) -> None:
    frugal, plain, at = pair(name)
    agree(transform(frugal, at), transform(plain, at))


NESTS = ["".join(ts) for n in (2, 3) for ts in itertools.product("GJV", repeat=n)]


def nest(transforms: str, f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """A nest of grad, jvp and vmap, the outermost first, and its gradient by the tape; small x keep it well posed."""
    for transform in reversed(transforms):
        f = {
            "G": lambda x, f=f: func.grad(lambda x: f(x).sin().sum())(x),
            "J": lambda x, f=f: func.jvp(f, (x,), (x.cos(),))[1],
            "V": lambda x, f=f: func.vmap(lambda s: f(x * s))(torch.tensor([1.0, 0.5], dtype=x.dtype)),
        }[transform]
    y = f(x.requires_grad_())
    return y, torch.autograd.grad(y.sin().sum(), x)[0]


@pytest.mark.parametrize("transforms", NESTS)
def test_every_nest(transforms: str) -> None:
    f = lambda a, b: torch.tanh(a @ b) * b.sin()
    x = 0.3 * torch.randn(2, 2, dtype=torch.float64)
    agree(nest(transforms, lambda x: recompute(f)(x, x.cos()), x), nest(transforms, lambda x: f(x, x.cos()), x))


@pytest.mark.parametrize("transform", [grad, vmap_grad], ids=lambda t: t.__name__)
def test_transforms_of_it_compile(transform: Transform) -> None:
    frugal, plain, at = pair("attention")
    agree(compiled(transform, frugal, at, "aot_eager"), transform(plain, at))


def layers(x: Tensor) -> Tensor:
    for _ in range(8):
        x = x.sin().cos()
    return x


def saved(y: Tensor) -> int:
    """How many numbers wait for the backward pass of y."""
    todo, seen = [y.grad_fn], set()
    found: dict[int, int] = {}
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        tensors = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        found |= {
            t.data_ptr(): t.numel() for t in (*tensors, *getattr(node, "saved_tensors", ())) if torch.is_tensor(t)
        }
        todo += [before for before, _ in node.next_functions]
    return sum(found.values())


@pytest.mark.parametrize("how", [recompute, lambda f: torch.compile(recompute(f), fullgraph=True, backend="aot_eager")])
def test_a_training_step_keeps_its_inputs_alone(how: Any) -> None:
    x = torch.randn(100, requires_grad=True)
    y, plain = how(layers)(x), layers(x)
    assert saved(plain) >= 1600
    assert saved(y) <= 100
    agree(torch.autograd.grad(y.sum(), x), torch.autograd.grad(plain.sum(), x), 1e-6)


def _loss(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def loss(x: Tensor) -> Tensor:
        for _ in range(8):
            x = f(x)
        return x.square().sum()

    return loss


def _backward(f: Callable[[Tensor], Tensor], x: Tensor) -> Any:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x), x)


@pytest.mark.parametrize(
    "use",
    [
        _backward,
        lambda f, x: func.grad(f)(x),
        lambda f, x: func.vmap(func.grad(f))(x.unflatten(0, (4, -1))),
        lambda f, x: func.grad(lambda x: func.vmap(f)(x.unflatten(0, (4, -1))).sum())(x),
        lambda f, x: func.jvp(func.grad(f), (x,), (x,))[1],
        lambda f, x: func.grad(lambda x: func.jvp(f, (x,), (x,))[1])(x),
        lambda f, x: func.grad(lambda x: func.grad(f)(x).square().sum())(x),
    ],
    ids=["backward", "grad", "vmap_grad", "grad_vmap", "jvp_grad", "grad_jvp", "grad_grad"],
)
def test_every_level_keeps_inputs_alone(use: Callable[..., Any]) -> None:
    """Eight calls of eight layers: plain functions keep 128 activations, eight inputs and one call's inside are 24."""
    x = torch.randn(2**14)
    whole, frugal = (peak_bytes(lambda: use(_loss(f), x)) for f in (layers, recompute(layers)))
    assert frugal < whole / 2, f"{frugal / whole:.2f}"


def test_nothing_else_is_held() -> None:
    """What the node remembers of the call has no tensors in it, neither arguments nor results."""
    x = torch.randn(3, requires_grad=True)
    y = recompute(lambda tree: {"y": tree["x"].sin(), "z": tree["x"]})({"x": x, "constant": torch.ones(3)})["y"]
    assert y.grad_fn is not None
    assert list(captured(lambda: x)) == [x]
    assert list(captured(y.grad_fn.rule.f)) == []


def test_it_runs_twice_and_only_if_it_must() -> None:
    runs = []

    @recompute
    def f(x: Tensor) -> Tensor:
        runs.append(1)
        return x.sin()

    x = torch.randn(3)
    f(x)
    func.jvp(f, (x,), (x,))
    with torch.no_grad():
        f(x.clone().requires_grad_())
    assert len(runs) == 3
    func.grad(lambda x: f(x).sum())(x)
    assert len(runs) == 5


def test_what_is_constant_stays_so() -> None:
    """Where gradients are off between two levels, as of plain code, at each of those outside."""
    x = torch.tensor([0.3, 0.7], dtype=torch.float64)

    def frozen(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def product(x: Tensor) -> Tensor:
            with torch.no_grad():
                slope = func.grad(lambda x: f(x).square().sum())(x)
            total: Tensor = (slope * x).sum()
            return total

        return product

    for depth in range(3):
        twice, plain = frozen(recompute(torch.sin)), frozen(torch.sin)
        for _ in range(depth):
            twice, plain = (lambda x, f=f: func.grad(f)(x).sum() for f in (twice, plain))
        agree(func.grad(twice)(x), func.grad(plain)(x), 1e-14)


def test_a_batch_of_gradients_is_differentiated() -> None:
    x, dy = torch.randn(3, 5, requires_grad=True), torch.randn(4, 3, 5)
    slope, want = (
        torch.autograd.grad(f(x), x, dy, is_grads_batched=True, create_graph=True)[0]
        for f in (recompute(torch.sin), torch.sin)
    )
    agree(slope, want)
    agree(torch.autograd.grad(slope.sum(), x), torch.autograd.grad(want.sum(), x))


def test_it_looks_like_the_function() -> None:
    frugal = recompute(xfn.attention)
    assert inspect.signature(frugal) == inspect.signature(xfn.attention)
    assert (frugal.__name__, frugal.__doc__) == (xfn.attention.__name__, xfn.attention.__doc__)


def test_parameters_learn_where_the_input_is_constant() -> None:
    w, x = torch.randn(2, 2, requires_grad=True), torch.randn(3, 2)
    agree(torch.autograd.grad(recompute(torch.matmul)(x, w).sum(), w), torch.autograd.grad((x @ w).sum(), w), 0)


def test_autocast_is_what_it_was() -> None:
    x = torch.randn(5, 5, requires_grad=True)
    f = lambda x: (x @ x).relu() @ x
    with torch.autocast("cpu", torch.bfloat16):
        y, plain = recompute(f)(x), f(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(*(torch.autograd.grad(t.float().square().sum(), x)[0] for t in (y, plain)))
    y, plain = recompute(f)(x), f(x)
    with torch.autocast("cpu", torch.bfloat16):  # which casts the products of both backward passes
        assert torch.equal(*(torch.autograd.grad(t.square().sum(), x)[0] for t in (y, plain)))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_it_can_be_traced(mode: str) -> None:
    f, x = func.grad(lambda x: recompute(layers)(x).sum()), torch.randn(3)
    agree(make_fx(f, tracing_mode=mode)(x)(x), f(x), 1e-6)


def over(w: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that recomputes, and captures w."""
    return recompute(lambda x: (x * w * x).sum())


X, XS = torch.arange(3.0), torch.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: over(X.clone().requires_grad_())(X.clone().requires_grad_()),
        lambda: over(X.clone().requires_grad_())(X),
        lambda: func.grad(lambda w: over(w)(X))(X),
        lambda: func.grad(lambda w: over(w)(w))(X),
        lambda: func.grad(lambda w: func.grad(over(w))(X).sum())(X),
        lambda: func.jvp(lambda w: func.grad(over(w))(X), (X,), (X,)),
        lambda: func.vmap(lambda w: func.grad(lambda w: over(w)(X))(w))(XS),
        lambda: func.grad(lambda w: func.vmap(over(w))(XS).sum())(X),
    ],
)
def test_a_captured_tensor_that_is_differentiated_is_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=f"<lambda> uses a tensor that is {DIFFERENTIATED}.*make it a parameter"):
        call()


def test_captured_constants_are_constants() -> None:
    """Even mapped ones, and duals, where nothing further out is differentiated."""
    plain = lambda w: lambda x: (x * w * x).sum()
    for use in (
        lambda f: func.grad(f(X))(X),
        lambda f: func.vmap(lambda w: func.grad(f(w))(X))(XS),
        lambda f: func.jvp(lambda w: f(w)(X), (X,), (X,)),
    ):
        agree(use(over), use(plain))


@pytest.mark.parametrize(
    "use",
    [
        lambda x: func.vmap(lambda w: over(w)(x))(XS).sum(),
        lambda x: func.vmap(lambda w: func.grad(over(w))(x))(XS).sum(),
        lambda x: func.vmap(lambda w: recompute(lambda x, f=lambda x: x * w: f(x).sum())(x))(XS).sum(),
    ],
)
def test_a_captured_tensor_that_is_mapped_is_refused_where_the_map_is_differentiated(use: Any) -> None:
    for transform in (func.grad, func.jacrev, func.hessian):
        with pytest.raises(ValueError, match="uses a tensor that is mapped and not among its arguments"):
            transform(use)(X)


def test_a_function_that_draws_for_itself_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dropout draws from torch's generator.*by a key that is an argument"):
        recompute(torch.nn.functional.dropout)(X.clone().requires_grad_())
    with pytest.raises(ValueError, match="draws from torch's generator"):
        func.grad(lambda x: recompute(lambda x: (x * torch.rand(3)).sum())(x))(X)
