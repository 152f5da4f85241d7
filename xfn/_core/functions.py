"""Functions of tensors to tuples of tensors: their derivatives at a point, and what they were made with."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain, islice
from types import CellType, FunctionType, MethodType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, func

from .kernel import Grads, Outs
from .levels import levels
from .pytree import flatten

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Function = Callable[..., Outs]
Dims = Sequence[int | None]
HOLE = object()


def backwards(f: Function, x: Outs, needs: Sequence[bool], dy: Grads) -> tuple[Outs, Grads]:
    """f(x), and the cotangents of those of x that need one."""
    live, given = holes(needs), tensors(dy)
    of = _of(f, x, live, lambda y: tuple(t for t, d in zip(y, dy, strict=True) if d is not None))
    at = [t for t, need in zip(x, needs, strict=True) if need]
    if levels() or (torch.is_grad_enabled() and any(t.requires_grad for t in (*x, *given))):
        # grad, not vjp: what the backward pass of an op opens must not stand directly under a map, outside this level
        dot = lambda *values: _dot(given, of(*values))
        grads, y = func.grad(dot, tuple(range(len(at))), has_aux=True)(*at)
        return y, filled(live, grads)
    with torch.enable_grad():  # nobody looks on, and there is a shorter road
        leaves = [t.detach().requires_grad_() for t in at]
        outs, y = of(*leaves)
    y, moved = tuple(t.detach() for t in y), [(t, d) for t, d in zip(outs, given, strict=True) if t.requires_grad]
    if not moved:
        return y, filled(live, [torch.zeros_like(t) for t in leaves])
    outs, given = zip(*moved, strict=True)
    return y, filled(live, torch.autograd.grad(outs, leaves, given, allow_unused=True, materialize_grads=True))


def forwards(f: Function, x: Outs, tx: Grads) -> tuple[Outs, Outs]:
    """f(x), and the tangents of those of its results that are smooth."""
    of = _of(f, x, blank(tx), lambda y: tuple(t for t in y if smooth(t)))
    at = tuple(t for t, d in zip(x, tx, strict=True) if d is not None)
    _, ty, y = func.jvp(of, at, tensors(tx), has_aux=True)  # type: ignore[misc]
    return y, ty


def _dot(given: Outs, results: tuple[Outs, Outs]) -> tuple[Any, Outs]:
    outs, y = results
    return sum((t * d.conj()).sum().real for t, d in zip(outs, given, strict=True)), y


def _of(f: Function, x: Outs, live: Sequence[Any], some: Callable[[Outs], Outs]) -> Callable[..., tuple[Outs, Outs]]:
    """f as a function of those of x that are live, to some of its results, and all of them."""

    def of(*values: Tensor) -> tuple[Outs, Outs]:
        y = f(*(t if value is None else value for t, value in zip(x, filled(live, values), strict=True)))
        return some(y), y

    return of


def as_now(f: Callable[P, R], x: Outs) -> Callable[P, R]:
    """f under the autocast that is on now, whenever it runs."""
    devices = sorted({t.device.type for t in x} - {"meta"})
    now = _autocast(devices)

    def same(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            for device, dtype, enabled in now if now != _autocast(devices) else ():
                stack.enter_context(torch.autocast(device, dtype, enabled))
            return f(*args, **kwargs)

    return same


def _autocast(devices: Sequence[str]) -> list[tuple[str, torch.dtype, bool]]:
    return [(d, torch.get_autocast_dtype(d), torch.is_autocast_enabled(d)) for d in devices]


def captured(f: Any) -> Iterator[Tensor]:
    """The tensors in the closure of a function, and in those of the functions that are there."""
    seen, todo = set(), [f]
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, FunctionType):
            cells = [cell.cell_contents for cell in thing.__closure__ or () if cell != CellType()]
            todo += flatten([cells, thing.__defaults__, thing.__kwdefaults__])[0]
        elif isinstance(thing, partial):
            todo += flatten([thing.func, thing.args, thing.keywords])[0]
        elif isinstance(thing, MethodType):
            todo += [thing.__func__, *flatten(getattr(thing.__self__, "__dict__", None))[0]]


def tensors(leaves: Sequence[Any]) -> Outs:
    """Those of the leaves that are tensors."""
    return tuple([t for t in leaves if isinstance(t, Tensor)])


def blank(leaves: Sequence[Any]) -> list[Any]:
    """The leaves, with a hole for each tensor."""
    return [HOLE if isinstance(t, Tensor) else t for t in leaves]


def holes(needs: Sequence[bool]) -> list[Any]:
    """A hole for each that is needed, None for the others."""
    return [HOLE if need else None for need in needs]


def filled(blank: Sequence[Any], values: Sequence[Tensor]) -> list[Any]:
    """The leaves, with the values in the holes."""
    found = iter(values)
    return [next(found) if t is HOLE else t for t in blank]


def cut(values: Sequence[T], counts: Sequence[int]) -> list[tuple[T, ...]]:
    """The values in runs of so many."""
    found = iter(values)
    return [tuple(islice(found, count)) for count in counts]


def joined(groups: Iterable[Iterable[T]]) -> tuple[T, ...]:
    """The values of all groups."""
    return tuple(chain.from_iterable(groups))


def full(d: Grads, like: Outs) -> Outs:
    """Derivatives, zero where there are none."""
    return tuple(torch.zeros_like(t) if some is None else some for some, t in zip(d, like, strict=True))


def lead(t: Tensor, dim: int | None, size: int) -> Tensor:
    """t with its mapped dim in front; one that is not mapped is repeated, for a dual is made of no expanded tensor."""
    return t.expand(size, *t.shape).clone() if dim is None else t.movedim(dim, 0)


def smooth(t: Tensor) -> bool:
    """Whether t can be differentiated."""
    return t.is_floating_point() or t.is_complex()
