"""Transforms, each as one program over either library: ``torch.func`` and ``jax`` agree on its names.

Each takes a function f of arrays to a tuple of arrays, and gives a tree of arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

Array = Any
Arrays = tuple[Array, ...]
Function = Callable[..., Arrays]


@dataclass(frozen=True)
class Library:
    func: Any
    where: Callable[[Array, Array, Array], Array]
    isinf: Callable[[Array], Array]


Program = Callable[[Library, Function, "Point"], Any]


class Point(NamedTuple):
    """A point, two tangents, and three of each, stacked."""

    x: Arrays
    t: Arrays
    s: Arrays
    xs: Arrays
    ts: Arrays


def loss(lib: Library, f: Function) -> Callable[..., Array]:
    """A scalar with three derivatives that are not zero; a row that sees nothing adds nothing to it."""

    def of(*x: Array) -> Array:
        finite = [lib.where(lib.isinf(y), 0.0, y) for y in f(*x)]
        return sum((y * y * y / 3 + y * y / 2 + (i + 1) * y).sum() for i, y in enumerate(finite))

    return of


def dot(a: Arrays, b: Arrays) -> Array:
    return sum((u * v).sum() for u, v in zip(a, b, strict=True))


def every(p: Point) -> tuple[int, ...]:
    return tuple(range(len(p.x)))


def value(lib: Library, f: Function, p: Point) -> Any:
    return f(*p.x)


def grad(lib: Library, f: Function, p: Point) -> Any:
    return lib.func.grad(loss(lib, f), every(p))(*p.x)


def grad_of_out(lib: Library, f: Function, p: Point) -> Any:
    return lib.func.grad(loss(lib, lambda *x: f(*x)[:1]), every(p))(*p.x)


def grad_of_lse(lib: Library, f: Function, p: Point) -> Any:
    return lib.func.grad(loss(lib, lambda *x: f(*x)[1:]), every(p))(*p.x)


def jvp(lib: Library, f: Function, p: Point) -> Any:
    return lib.func.jvp(f, p.x, p.t)


def jacfwd(lib: Library, f: Function, p: Point) -> Any:
    return lib.func.jacfwd(f, every(p))(*p.x)


def jacrev(lib: Library, f: Function, p: Point) -> Any:
    return lib.func.jacrev(f, every(p))(*p.x)


def vmap(lib: Library, f: Function, p: Point) -> Any:
    return lib.func.vmap(f)(*p.xs)


def per_example_grad(lib: Library, f: Function, p: Point) -> Any:
    return lib.func.vmap(lib.func.grad(loss(lib, f), every(p)))(*p.xs)


def per_example_grad_of_shared(lib: Library, f: Function, p: Point) -> Any:
    """One tensor has an example axis at a time; the gradients of the others are per example all the same."""
    of = lib.func.grad(loss(lib, f), every(p))
    dims = lambda i: tuple(0 if j == i else None for j in every(p))
    return [lib.func.vmap(of, dims(i))(*p.x[:i], p.xs[i], *p.x[i + 1 :]) for i in every(p)]


def grad_of_vmap(lib: Library, f: Function, p: Point) -> Any:
    shared = lib.func.vmap(f, (0, *[None] * (len(p.x) - 1)))
    return lib.func.grad(loss(lib, shared), every(p))(p.xs[0], *p.x[1:])


def hvp(lib: Library, f: Function, p: Point) -> Any:
    """Forward over reverse."""
    return lib.func.jvp(lib.func.grad(loss(lib, f), every(p)), p.x, p.t)


def per_example_hvp(lib: Library, f: Function, p: Point) -> Any:
    return lib.func.vmap(lambda x, t: lib.func.jvp(lib.func.grad(loss(lib, f), every(p)), x, t))(p.xs, p.ts)


def reverse_over_reverse(lib: Library, f: Function, p: Point) -> Any:
    return lib.func.grad(lambda *x: dot(lib.func.grad(loss(lib, f), every(p))(*x), p.t), every(p))(*p.x)


def gradient_penalty(lib: Library, f: Function, p: Point) -> Any:
    def norm(*x: Array) -> Array:
        slopes = lib.func.grad(loss(lib, f), every(p))(*x)
        return (1 + dot(slopes, slopes)) ** 0.5

    return lib.func.grad(norm, every(p))(*p.x)


def reverse_over_forward(lib: Library, f: Function, p: Point) -> Any:
    """By the point and by the tangent."""
    along = lambda x, t: loss(lib, lambda *x: lib.func.jvp(f, x, t)[1])(*x)
    return lib.func.grad(along, (0, 1))(p.x, p.t)


def forward_over_forward(lib: Library, f: Function, p: Point) -> Any:
    return lib.func.jvp(lambda x, t: lib.func.jvp(f, x, t), (p.x, p.t), (p.s, p.x))


def hessian(lib: Library, f: Function, p: Point) -> Any:
    return lib.func.hessian(loss(lib, f), every(p))(*p.x)


def third_reverse(lib: Library, f: Function, p: Point) -> Any:
    """grad of grad of grad."""
    once = lambda g, t: lambda *x: dot(lib.func.grad(g, every(p))(*x), t)
    return lib.func.grad(once(once(loss(lib, f), p.t), p.s), every(p))(*p.x)


def third_mixed(lib: Library, f: Function, p: Point) -> Any:
    """jvp of jvp of grad."""
    of = lib.func.grad(loss(lib, f), every(p))
    return lib.func.jvp(lambda *x: lib.func.jvp(of, x, p.t)[1], p.x, p.s)


PROGRAMS: tuple[Program, ...] = (
    value, grad, grad_of_out, grad_of_lse, jvp, jacfwd, jacrev, vmap, per_example_grad, per_example_grad_of_shared,
    grad_of_vmap, hvp, per_example_hvp, reverse_over_reverse, gradient_penalty, reverse_over_forward,
    forward_over_forward, hessian, third_reverse, third_mixed,
)  # fmt: skip
THIRD = (third_reverse, third_mixed)
"""Which are dear to compile, and meet every fourth case: the third order is plain torch of what all cases share."""
