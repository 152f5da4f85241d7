"""Reversible residual stacks: the activations of a layer are computed from those of the next.

A *chain* is a fold of half-layers over two streams of tensors, with parameters pⱼ of each and s that all share,

    (u, v) ← (v, u + hⱼ(pⱼ, s, v))

which may also emit tensors eⱼ, and tensors z that are summed over j. It is undone by u = b − h(p, s, a), where (a, b)
is what it gave. Its pullback is a chain again, from the last half-layer to the first, on the streams (b, da) and
(a, db), with parameters (pⱼ, deⱼ) and (s, dz):

    (b, da) + (−h(p, s, a), (∂h/∂a)ᵀ db + (∂e/∂a)ᵀ de + (∂z/∂a)ᵀ dz)        emits dpⱼ, and sums ds

and its tangent is one on the streams (u, u̇) and (v, v̇). So derivatives of every order hold the activations of one
half-layer, and mapped or not, all goes by one fold.

Source: Gomez, Ren, Urtasun and Grosse, The reversible residual network (2017); dropout is by key, not by a saved
state of a generator.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, func

from .. import random
from .._core.errors import ShapeError
from .._core.functions import Dims, as_now, backwards, blank, cut, filled, forwards, full, holes, joined, lead, tensors
from .._core.kernel import Grads, Outs
from .._core.kinds import check_kinds, check_tensors
from .._core.pytree import flatten, unflatten
from .recompute import attach, recompute

Step = Callable[[Outs, Outs, Outs], tuple[Outs, Outs, Outs]]
"""From p, s and v to what is added to u, what is emitted, and what is summed."""

Tree = tuple[list[Any], Any]
"""Leaves, with holes for tensors, and their structure."""


def reversible(f: Callable[..., Tensor], g: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A stack of residual layers that keeps the activations of none: y1 = x1 + f(pf, x2), y2 = x2 + g(pg, y1).

    The backward pass computes a layer's inputs from its outputs, x2 = y2 − g(pg, y1) and x1 = y1 − f(pf, x2). So
    activations take O(1) memory in depth, in derivatives of every order, for one more run of f and g. Values and
    derivatives are those of the plain loop, but for the rounding of these differences, under every transform.

    Args:
        f, g: pure functions of parameters, a tensor, and what else the stack is called with, to a tensor of the same
            shape. What they draw, they draw by the keyword ``key``.

    Returns:
        ``stack(params, x1, x2, *args, key=None) -> (y1, y2)``. ``params`` is a sequence of pairs (pf, pg) of any trees,
        one pair for each layer; ``args``, any trees too, go to f and g of every layer, behind x. Of a ``key``, layer i
        calls ``f(pf, x, *args, key=fold_in(key, 2 i))`` and ``g(pg, x, *args, key=fold_in(key, 2 i + 1))``; without
        one, they are called without.

    Raises:
        ShapeError: x1, x2 and what f and g give differ in shape.
        TypeError: they are no floating tensors, or adding them changes their dtype.
        ValueError: params are no pairs; f or g uses a tensor that is differentiated, or mapped, and is not among its
            arguments, or it draws from torch's own generator.

    Example:
        >>> import xfn
        >>> from xfn import random
        >>> def mix(w, x, key=None):
        ...     heads = (x @ w).unflatten(-1, (2, 4))
        ...     return xfn.attention(heads, heads, heads, p=0.1 if key is not None else 0.0, key=key).flatten(-2)
        >>> def feed(w, x, key=None):
        ...     return (x @ w).relu()
        >>> stack = reversible(mix, feed)
        >>> params = [tuple(random.normal(key, (2, 8, 8))) for key in random.split(random.key(0), 12)]
        >>> x = random.normal(random.key(1), (5, 8))
        >>> loss = lambda params: sum(y.square().mean() for y in stack(params, x, x, key=random.key(2)))
        >>> df, dg = torch.func.grad(loss)(params)[11]
        >>> df.shape
        torch.Size([8, 8])
    """

    def stack(
        params: Sequence[Any], x1: Tensor, x2: Tensor, *args: Any, key: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        _check(x1, x2)
        halves = [half for i, layer in enumerate(params) for half in zip((f, g), _pair(layer, i), strict=True)]
        if torch.compiler.is_compiling():
            for j, (h, p) in enumerate(halves):
                x1, x2 = x2, x1 + _fitting(h, recompute(h)(p, x2, *args, **_keyed(key, j)), x1)
            return x1, x2
        others, others_tree = flatten((args, key))
        trees = [flatten(p) for _, p in halves]
        ps, s = [tensors(leaves) for leaves, _ in trees], tensors(others)
        steps = [
            as_now(_step(h, j, (blank(leaves), tree), (blank(others), others_tree)), (x1,))
            for j, ((h, _), (leaves, tree)) in enumerate(zip(halves, trees, strict=True))
        ]
        fold = Chain(tuple(steps), 1, len(s), 0, _lengths(ps), (0,) * len(ps), origin=(f, g))
        y1, y2 = attach(fold, x1, x2, *s, *joined(ps))
        return y1, y2

    return stack


@dataclass(frozen=True)
class Chain:
    """The rule of a chain: x is u, v, s and the p of every step, y is u, v, z and the e of every step."""

    steps: tuple[Step, ...]
    n: int
    s: int
    z: int
    p: tuple[int, ...]
    e: tuple[int, ...]
    origin: tuple[Callable[..., Any], ...] = ()

    def __call__(self, *x: Tensor) -> Outs:
        u, v, s, *ps = cut(x, (self.n, self.n, self.s, *self.p))
        z: Outs | None = None
        emitted: list[Tensor] = []
        for step, p in zip(self.steps, ps, strict=True):
            du, e, dz = step(p, s, v)
            u, v = v, _sum(u, du)
            z = dz if z is None else _sum(z, dz)
            emitted += e
        return *u, *v, *(z or ()), *emitted

    def keep(self, x: Outs, y: Outs) -> Outs:
        return *y[: 2 * self.n], *x[2 * self.n :]

    def pull(self, kept: Outs, dy: Grads, needs: Sequence[bool]) -> Grads:
        n = self.n
        a, b, s, *ps = cut(kept, (n, n, self.s, *self.p))
        da, db, dz, *des = cut(dy, (n, n, self.z, *self.e))
        of_s, *of_p = cut(needs[2 * n :], (self.s, *self.p))
        layers = list(zip(self.steps, ps, des, of_p, strict=True))[::-1]
        steps = tuple(_pulled(step, n, (of_p, of_s), (blank(de), blank(dz))) for step, _, de, of_p in layers)
        given = [(*p, *tensors(de)) for _, p, de, _ in layers]
        emits = [sum(of_p) for _, _, _, of_p in layers]
        fold = Chain(steps, 2 * n, self.s + len(tensors(dz)), sum(of_s), _lengths(given), tuple(emits))
        y = attach(fold, *b, *full(da, a), *a, *full(db, b), *s, *tensors(dz), *joined(given))
        _, du, _, dv, ds, *dps = cut(y, (n, n, n, n, sum(of_s), *emits))
        return *du, *dv, *filled(holes(needs[2 * n :]), (*ds, *joined(dps[::-1])))

    def push(self, x: Outs, tx: Grads) -> Outs:
        n = self.n
        u, v, s, *ps = cut(x, (n, n, self.s, *self.p))
        tu, tv, ts, *tps = cut(tx, (n, n, self.s, *self.p))
        layers = list(zip(self.steps, ps, tps, self.e, strict=True))
        steps = tuple(_pushed(step, (n, e, self.z), (blank(tp), blank(ts))) for step, _, tp, e in layers)
        given = [(*p, *tensors(tp)) for _, p, tp, _ in layers]
        emits = tuple(2 * count for count in self.e)
        fold = Chain(steps, 2 * n, self.s + len(tensors(ts)), 2 * self.z, _lengths(given), emits)
        y = attach(fold, *u, *full(tu, u), *v, *full(tv, v), *s, *tensors(ts), *joined(given))
        return joined(part[len(part) // 2 :] for part in cut(y, (2 * n, 2 * n, 2 * self.z, *emits)))

    def batched(self, x: Outs, dims: Dims, info: Any) -> tuple["Chain", Outs]:
        n = self.n
        _, of_s, *of_p = cut(dims, (2 * n, self.s, *self.p))

        def mapped(step: Step, of: Dims) -> Step:
            return func.vmap(step, (of, of_s, (0,) * n), randomness=info.randomness)

        steps = tuple(map(mapped, self.steps, of_p))
        streams = [lead(t, dim, info.batch_size) for t, dim in zip(x[: 2 * n], dims, strict=False)]
        return replace(self, steps=steps), (*streams, *x[2 * n :])


def _step(h: Callable[..., Any], j: int, params: Tree, others: Tree) -> Step:
    """The half-layer of what the caller wrote."""

    def step(p: Outs, s: Outs, v: Outs) -> tuple[Outs, Outs, Outs]:
        args, key = unflatten(filled(others[0], s), others[1])
        found = h(unflatten(filled(params[0], p), params[1]), *v, *args, **_keyed(key, j))
        return (_fitting(h, found, v[0]),), (), ()

    return step


def _pulled(step: Step, n: int, needs: tuple[Any, Any], given: tuple[Any, Any]) -> Step:
    """The pullback of a step, as a step on (b, da) with (a, db) in sight."""
    (of_p, of_s), (de, dz) = needs, given
    counts = len(of_p), len(of_s), n
    flat = lambda *t: joined(step(*cut(t, counts)))

    def pulled(p: Outs, s: Outs, v: Outs) -> tuple[Outs, Outs, Outs]:
        (p, dy_e), (s, dy_z), (a, db) = cut(p, _rest(p, of_p)), cut(s, _rest(s, of_s)), cut(v, (n, n))
        needed, dy = (*of_p, *of_s, *[True] * n), (*db, *filled(de, dy_e), *filled(dz, dy_z))
        y, grads = backwards(flat, (*p, *s, *a), needed, dy)
        dp, ds, da = cut(grads, counts)
        return (*(-t for t in y[:n]), *tensors(da)), tensors(dp), tensors(ds)

    return pulled


def _pushed(step: Step, gives: Sequence[int], given: tuple[Any, Any]) -> Step:
    """The tangent of a step, as a step on (u, u̇) with (v, v̇) in sight."""
    tp, ts = given
    counts = len(tp), len(ts), gives[0]
    flat = lambda *t: joined(step(*cut(t, counts)))

    def pushed(p: Outs, s: Outs, v: Outs) -> tuple[Outs, Outs, Outs]:
        (p, dp), (s, ds), (v, dv) = cut(p, _rest(p, tp)), cut(s, _rest(s, ts)), cut(v, (gives[0], gives[0]))
        y, ty = forwards(flat, (*p, *s, *v), (*filled(tp, dp), *filled(ts, ds), *dv))
        du, e, z = ((*there, *moved) for there, moved in zip(cut(y, gives), cut(ty, gives), strict=True))
        return du, e, z

    return pushed


def _rest(x: Outs, own: Sequence[Any]) -> tuple[int, int]:
    """As many as there are own ones, and the rest."""
    return len(own), len(x) - len(own)


def _lengths(groups: Iterable[Sequence[Any]]) -> tuple[int, ...]:
    return tuple(map(len, groups))


def _sum(a: Outs, b: Outs) -> Outs:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _keyed(key: Tensor | None, j: int) -> dict[str, Tensor]:
    return {} if key is None else {"key": random.fold_in(key, j)}


def _fitting(h: Callable[..., Any], found: Any, x: Tensor) -> Tensor:
    """What h gave, if it can be added to a stream like x."""
    adds = isinstance(found, Tensor) and torch.promote_types(found.dtype, x.dtype) == x.dtype
    if adds and found.shape == x.shape:
        return found  # type: ignore[no-any-return]
    name = getattr(h, "__name__", repr(h))  # here, for Dynamo has no name for a method
    if not adds:
        got = found.dtype if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(f"{name} must give a tensor that adds to one of {x.dtype}, but gives {got}")
    raise ShapeError(f"{name} must give {list(x.shape)}, the shape of x1 and x2, but gives {list(found.shape)}")


def _check(x1: Tensor, x2: Tensor) -> None:
    check_tensors({"x1": x1, "x2": x2})
    check_kinds({"x1": x1, "x2": x2}, {})
    if x1.shape != x2.shape:
        raise ShapeError(f"x1 is {list(x1.shape)}, but x2 is {list(x2.shape)}: the streams have one shape")


def _pair(layer: Any, i: int) -> tuple[Any, Any]:
    if not isinstance(layer, tuple | list) or len(layer) != 2:
        raise ValueError(f"params[{i}] must be a pair (pf, pg) of the parameters of f and of g, but is {layer!r}")
    return layer[0], layer[1]
