"""Every transform, as a function of an op and its tensors.

Each takes a function f of tensors to a tuple of tensors, and gives a tree of tensors that a right f makes the
same as its oracle. ``x``, ``t``, ``s`` are a point and two tangents; ``xs`` and ``ts`` three of them, stacked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as fwad
from torch import Tensor, func
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint as torch_checkpoint

Tensors = tuple[Tensor, ...]
Function = Callable[..., Tensors]
Transform = Callable[[Function, "Point"], Any]


@dataclass(frozen=True)
class Point:
    x: Tensors
    t: Tensors
    s: Tensors
    xs: Tensors
    ts: Tensors

    def double(self) -> "Point":
        return Point(*(tuple(v.double() for v in row) for row in vars(self).values()))

    @property
    def every(self) -> tuple[int, ...]:
        return tuple(range(len(self.x)))


def loss(f: Function) -> Callable[..., Tensor]:
    """A scalar that bends: its second and third derivatives are not zero."""

    def scalar(*x: Tensor) -> Tensor:
        return torch.stack([(i + 1.0) * (y.sin() + y.square() / 3).sum() for i, y in enumerate(f(*x))]).sum()

    return scalar


def dot(a: Any, b: Any) -> Tensor:
    return torch.stack([(u * v).sum() for u, v in zip(a, b, strict=True)]).sum()


def _leaves(x: Tensors) -> Tensors:
    return tuple(v.detach().clone().requires_grad_() for v in x)


# Values and first derivatives.


def forward(f: Function, p: Point) -> Any:
    return f(*p.x)


def backward(f: Function, p: Point) -> Any:
    x = _leaves(p.x)
    loss(f)(*x).backward()
    return [v.grad for v in x]


def forward_ad_dual(f: Function, p: Point) -> Any:
    with fwad.dual_level():
        out = f(*(fwad.make_dual(x, t) for x, t in zip(p.x, p.t, strict=True)))
        return [part for y in out for part in fwad.unpack_dual(y)]


def grad(f: Function, p: Point) -> Any:
    return func.grad(loss(f), p.every)(*p.x)


def grad_of_each(f: Function, p: Point) -> Any:
    return [func.grad(loss(f), i)(*p.x) for i in p.every]


def vjp(f: Function, p: Point) -> Any:
    out, pull = func.vjp(f, *p.x)[:2]
    return out, pull(tuple(y.cos() for y in out))


def vjp_of_each_output(f: Function, p: Point) -> Any:
    pulls = [func.vjp(lambda *x, i=i: f(*x)[i], *p.x) for i in range(len(f(*p.x)))]
    return [pull(out.cos()) for out, pull, *_ in pulls]


def jvp(f: Function, p: Point) -> Any:
    return func.jvp(f, p.x, p.t)


def jvp_along_each(f: Function, p: Point) -> Any:
    def along(i: int, v: Tensor) -> Tensors:
        return f(*p.x[:i], v, *p.x[i + 1 :])

    return [func.jvp(lambda v, i=i: along(i, v), (p.x[i],), (p.t[i],)) for i in p.every]


def linearize(f: Function, p: Point) -> Any:
    out, push = func.linearize(f, *p.x)
    return out, push(*p.t)


def jacrev(f: Function, p: Point) -> Any:
    return func.jacrev(f, p.every)(*p.x)


def jacfwd(f: Function, p: Point) -> Any:
    return func.jacfwd(f, p.every)(*p.x)


def is_grads_batched(f: Function, p: Point) -> Any:
    x = _leaves(p.x)
    out = f(*x)
    cotangents = [torch.stack([y.detach().sin(), y.detach().cos()]) for y in out]
    return torch.autograd.grad(out, x, cotangents, is_grads_batched=True, allow_unused=True, materialize_grads=True)


# Maps.


def vmap(f: Function, p: Point) -> Any:
    return func.vmap(f)(*p.xs)


def vmap_any_dim(f: Function, p: Point) -> Any:
    dims = tuple(-1 - i % 2 for i in p.every)
    return func.vmap(f, dims, -1)(*(x.movedim(0, d) for x, d in zip(p.xs, dims, strict=True)))


def vmap_of_each(f: Function, p: Point) -> Any:
    return [
        func.vmap(f, tuple(0 if j == i else None for j in p.every))(*(p.xs[j] if j == i else p.x[j] for j in p.every))
        for i in p.every
    ]


def vmap_vmap(f: Function, p: Point) -> Any:
    if len(p.x) == 1:
        return func.vmap(func.vmap(f))(torch.stack([p.xs[0], p.ts[0]]))
    inner = func.vmap(f, (0, *[None] * (len(p.x) - 1)))
    return func.vmap(inner, (None, *[0] * (len(p.x) - 1)))(*p.xs)


class Model(torch.nn.Module):
    """An op with its tensors as parameters."""

    def __init__(self, f: Function, x: Tensors) -> None:
        super().__init__()
        self.f, self.x = f, torch.nn.ParameterList(x)

    def forward(self, shift: Tensor) -> Tensors:
        return self.f(*(v + shift for v in self.x))


def ensemble(f: Function, p: Point) -> Any:
    """``functional_call`` over ``stack_module_state``."""
    models = [Model(f, tuple(v[i] for v in p.xs)) for i in range(3)]
    state = func.stack_module_state(models)
    shift = torch.tensor(0.5)
    return func.vmap(lambda state: func.functional_call(models[0], state, (shift,)))(state)


# Compositions of two and three.


def vmap_grad(f: Function, p: Point) -> Any:
    return func.vmap(func.grad(loss(f), p.every))(*p.xs)


def vmap_grad_partly_mapped(f: Function, p: Point) -> Any:
    return [
        func.vmap(func.grad(loss(f), p.every), tuple(0 if j == i else None for j in p.every))(
            *(p.xs[j] if j == i else p.x[j] for j in p.every)
        )
        for i in p.every
    ]


def vmap_vjp_of_one_cotangent(f: Function, p: Point) -> Any:
    """Of each operand mapped in its turn: the cotangent has no batch, and the gradient has one."""

    def pulled(*x: Tensor) -> Any:
        return func.vjp(f, *x)[1](tuple(y.sin() for y in f(*p.x)))

    return [
        func.vmap(pulled, tuple(0 if j == i else None for j in p.every))(*p.x[:i], p.xs[i], *p.x[i + 1 :])
        for i in p.every
    ]


def vmap_jvp(f: Function, p: Point) -> Any:
    return func.vmap(lambda x, t: func.jvp(f, x, t))(p.xs, p.ts)


def vmap_jvp_over_tangents(f: Function, p: Point) -> Any:
    return func.vmap(lambda t: func.jvp(f, p.x, t))(p.ts)


def jvp_vmap(f: Function, p: Point) -> Any:
    return func.jvp(func.vmap(f), p.xs, p.ts)


def grad_vmap(f: Function, p: Point) -> Any:
    shared = lambda *x: func.vmap(f, (0, *[None] * (len(x) - 1)))(*x)
    return func.grad(loss(shared), p.every)(p.xs[0], *p.x[1:])


def double_backward(f: Function, p: Point) -> Any:
    x = _leaves(p.x)
    slopes = torch.autograd.grad(loss(f)(*x), x, create_graph=True)
    dot(slopes, p.t).backward()
    return [v.grad for v in x]


def dual_of_backward(f: Function, p: Point) -> Any:
    with fwad.dual_level():
        x = tuple(fwad.make_dual(v, t) for v, t in zip(_leaves(p.x), p.t, strict=True))
        slopes = torch.autograd.grad(loss(f)(*x), x)
        return [fwad.unpack_dual(g).tangent for g in slopes]


def jvp_grad(f: Function, p: Point) -> Any:
    return func.jvp(func.grad(loss(f), p.every), p.x, p.t)


def grad_jvp(f: Function, p: Point) -> Any:
    return func.grad(lambda *x: loss(lambda *x: func.jvp(f, x, p.t)[1])(*x), p.every)(*p.x)


def grad_jvp_by_tangent(f: Function, p: Point) -> Any:
    return func.grad(lambda *t: loss(lambda *t: func.jvp(f, p.x, t)[1])(*t), p.every)(*p.t)


def grad_grad(f: Function, p: Point) -> Any:
    return func.grad(lambda *x: dot(func.grad(loss(f), p.every)(*x), p.t).sin(), p.every)(*p.x)


def jvp_jvp(f: Function, p: Point) -> Any:
    return func.jvp(lambda *x: func.jvp(f, x, p.t), p.x, p.s)


def vmap_jvp_grad(f: Function, p: Point) -> Any:
    return func.vmap(lambda x, t: func.jvp(func.grad(loss(f), p.every), x, t))(p.xs, p.ts)


def vmap_grad_grad(f: Function, p: Point) -> Any:
    twice = func.grad(lambda *x: dot(func.grad(loss(f), p.every)(*x), p.t).sin(), p.every)
    return func.vmap(twice)(*p.xs)


def vmap_vjp_grad(f: Function, p: Point) -> Any:
    """Its pullback is called when the level that made it is gone, directly under a map."""
    return func.vmap(lambda x, t: func.vjp(func.grad(loss(f), p.every), *x)[1](t))(p.xs, p.ts)


def grad_vmap_grad(f: Function, p: Point) -> Any:
    norms = lambda *x: sum(g.square().sum() for g in func.vmap(func.grad(loss(f), p.every))(*x))
    return func.grad(norms, p.every)(*p.xs)


# Hessians and third derivatives, for tiny cases.


def hessian(f: Function, p: Point) -> Any:
    return func.hessian(loss(f), p.every)(*p.x)


def grad_jacfwd(f: Function, p: Point) -> Any:
    """A map over tangents alone, which depend on what is differentiated."""

    def norms(*x: Tensor) -> Any:
        scaled = lambda *u: loss(f)(*(a * (1 + b / 3) for a, b in zip(u, x, strict=True)))
        return sum(g.square().sum() for g in func.jacfwd(scaled, p.every)(*x))

    return func.grad(norms, p.every)(*p.x)


def jacrev_jacrev(f: Function, p: Point) -> Any:
    return func.jacrev(func.jacrev(loss(f), p.every), p.every)(*p.x)


def jacfwd_jacfwd(f: Function, p: Point) -> Any:
    return func.jacfwd(func.jacfwd(loss(f), p.every), p.every)(*p.x)


def vmap_hessian(f: Function, p: Point) -> Any:
    return func.vmap(func.hessian(loss(f)))(*p.xs)


def grad_grad_grad(f: Function, p: Point) -> Any:
    once = lambda g: lambda *x: dot(func.grad(g, p.every)(*x), p.t).sin()
    return func.grad(once(once(loss(f))), p.every)(*p.x)


def jvp_jvp_grad(f: Function, p: Point) -> Any:
    return func.jvp(lambda *x: func.jvp(func.grad(loss(f), p.every), x, p.t), p.x, p.s)


def jvp_jvp_jvp(f: Function, p: Point) -> Any:
    return func.jvp(lambda *x: func.jvp(lambda *x: func.jvp(f, x, p.t), x, p.s), p.x, p.t)


def vmap_jacrev_grad_grad(f: Function, p: Point) -> Any:
    """A map within a map, and the gradient of what stands directly under one."""
    twice = func.grad(lambda *x: dot(func.grad(loss(f), p.every)(*x), p.t).sin())
    return func.vmap(func.jacrev(twice))(*p.xs)


def grad_jvp_jvp_jvp(f: Function, p: Point) -> Any:
    """The fourth: a gradient of what forward mode alone has made, whose levels do not show that one is wanted."""
    along = lambda g, t: lambda *x: func.jvp(g, x, t)[1]
    return func.grad(along(along(along(loss(f), p.t), p.s), p.t), p.every)(*p.x)


THIRD = (
    grad_jacfwd, hessian, jacrev_jacrev, jacfwd_jacfwd, vmap_hessian, grad_grad_grad, jvp_jvp_grad, jvp_jvp_jvp,
    vmap_jacrev_grad_grad, grad_jvp_jvp_jvp,
)  # fmt: skip
LONG = (vmap_jacrev_grad_grad, grad_jvp_jvp_jvp)
"""These compile too, in minutes; the others show all that there is to show."""


# Other readers of programs.


def checkpoint(f: Function, p: Point) -> Any:
    return backward(lambda *x: torch_checkpoint(f, *x, use_reentrant=False), p)


def checkpoint_reentrant(f: Function, p: Point) -> Any:
    return backward(lambda *x: torch_checkpoint(f, *x, use_reentrant=True), p)


def checkpoint_batched(f: Function, p: Point) -> Any:
    return is_grads_batched(lambda *x: torch_checkpoint(f, *x, use_reentrant=False), p)


def make_fx_grad(f: Function, p: Point) -> Any:
    return make_fx(func.grad(loss(f), p.every))(*p.x)(*p.x)


def functionalize(f: Function, p: Point) -> Any:
    return func.functionalize(func.grad(loss(f), p.every))(*p.x)


def export(f: Function, p: Point) -> Any:
    shift = torch.zeros(())
    return torch.export.export(Model(f, p.x), (shift,)).module()(shift)


def export_grad(f: Function, p: Point) -> Any:
    """torch exports no grad of plain code either; what make_fx made of it, it does."""

    class Grad(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.program = make_fx(func.grad(loss(f), p.every))(*p.x)

        def forward(self, *x: Tensor) -> Any:
            return self.program(*x)

    return torch.export.export(Grad(), p.x).module()(*p.x)


TRACED = (linearize, make_fx_grad, functionalize, export, export_grad)
"""These write the op down, whatever its case is, and take a second each."""

PLAINLY: dict[Transform, Transform] = {
    checkpoint: backward,
    checkpoint_reentrant: backward,
    checkpoint_batched: is_grads_batched,
    linearize: jvp,
    make_fx_grad: grad,
    functionalize: grad,
    export: forward,
    export_grad: grad,
    jacfwd: jacrev,
    hessian: jacrev_jacrev,
    jacfwd_jacfwd: jacrev_jacrev,
}
"""Those that give what another one gives, with less work: that is what the reference is asked."""

TRANSFORMS: tuple[Transform, ...] = tuple(
    value
    for name, value in vars().items()
    if callable(value)
    and getattr(value, "__module__", "") == __name__
    and list(value.__annotations__) == ["f", "p", "return"]
)
