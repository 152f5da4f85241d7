"""Recomputation: a function that keeps its inputs alone, and runs again in the backward pass.

A *rule* is a function of tensors that says itself how it is differentiated and mapped. ``attach`` runs it on tensors
that no transform differentiates, so that nothing of its inside is kept, and then binds the results to the inputs by
the rule, level by level of torch.func. Each level asks for another rule:

    grad    the pullback of f, which is attached in its turn, and so keeps inputs and cotangents alone
    jvp     the tangent of f, attached
    vmap    the map of f, attached to the level below

and so every nesting of them keeps inputs alone.

Source: Chen, Xu, Zhang and Guestrin, Training deep nets with sublinear memory cost (2016).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, func
from torch.autograd.forward_ad import unpack_dual
from torch.utils.checkpoint import checkpoint

from .._core.functions import (
    Dims,
    Function,
    as_now,
    backwards,
    blank,
    captured,
    filled,
    forwards,
    holes,
    lead,
    smooth,
    tensors,
)
from .._core.kernel import Grads, Outs
from .._core.levels import bottom, escaped, forward_mode, in_loop, levels, paused, transforming
from .._core.pytree import flatten, unflatten

P = ParamSpec("P")
R = TypeVar("R")


def recompute(f: Callable[P, R]) -> Callable[P, R]:
    """The same function, which keeps its inputs alone and computes its inside again in the backward pass.

    Time for memory: what waits for the backward pass is f's inputs, and f runs once more. Values and derivatives
    are those of f under every transform and nesting, and second derivatives keep inputs alone, too.

    Args:
        f: a pure function of any arguments, trees of tensors and of other values, to such a tree. What it draws, it
            draws by a key, so that both runs draw the same.

    Returns:
        A function with the signature of f; it works as a decorator.

    Raises:
        ValueError: f uses a tensor that is differentiated, or mapped, and is not among its arguments, or it draws
            from torch's own generator.

    Examples:
        >>> import xfn
        >>> from xfn import random
        >>> @recompute
        ... def layer(w, x, key):
        ...     x = x + (x @ w).relu()
        ...     return x + xfn.attention(x, x, x, p=0.1, key=key)
        >>> w, x = random.normal(random.key(0), (8, 8)), random.normal(random.key(1), (5, 2, 8))
        >>> loss = lambda w, x: layer(w, x, random.key(2)).square().sum()
        >>> torch.func.vmap(torch.func.grad(loss), (None, 0))(w, torch.stack([x, -x])).shape
        torch.Size([2, 8, 8])

        A function that is there already:

        >>> torch.equal(recompute(torch.sin)(x), torch.sin(x))
        True
    """

    @wraps(f)
    def _frugal(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            if transforming() or not torch.compiler.is_dynamo_compiling() or torch.compiler.is_exporting():
                return f(*args, **kwargs)
            return checkpoint(f, *args, use_reentrant=False, **kwargs)
        leaves, structure = flatten((args, kwargs))
        x, others = tensors(leaves), blank(leaves)
        result: list[Any] = []

        def flat(*x: Tensor) -> Outs:
            args, kwargs = unflatten(filled(others, x), structure)
            leaves, tree = flatten(f(*args, **kwargs))
            result[:] = blank(leaves), tree
            return tensors(leaves)

        outs = attach(Again(as_now(flat, x), origin=(f,)), *x)
        return unflatten(filled(result[0], outs), result[1])

    return _frugal


class Rule(Protocol):
    """A function of tensors that says how it is differentiated and mapped."""

    @property
    def origin(self) -> tuple[Callable[..., Any], ...]:
        """The functions of the caller that it runs; none, where another rule has run them already."""
        ...

    def __call__(self, *x: Tensor) -> Outs: ...

    def keep(self, x: Outs, y: Outs) -> Outs:
        """What the backward pass needs."""
        ...

    def pull(self, kept: Outs, dy: Grads, needs: Sequence[bool]) -> Grads:
        """The cotangents of x."""
        ...

    def push(self, x: Outs, tx: Grads) -> Outs:
        """The tangents of those of y that are differentiable."""
        ...

    def batched(self, x: Outs, dims: Dims, info: Any) -> tuple["Rule", Outs]:
        """The rule that maps over these dims, to results along dim 0, and what it takes."""
        ...


def attach(rule: Rule, *x: Tensor) -> Outs:
    """y = rule(x), for whose derivatives nothing waits but what the rule keeps."""
    opened = set(levels())
    followed = torch.is_grad_enabled() and ("Grad" in opened or any(bottom(t).requires_grad for t in x))
    if not followed or opened & {"Dual", "Functionalize"} or paused() or any(map(in_loop, x)):
        return _checked(rule, x, rule(*x))
    drawn = _generators(x)
    y = rule(*(t.detach() for t in x))
    if not all(map(torch.equal, drawn, _generators(x))):
        raise ValueError(
            f"{_names(rule)} draws from torch's generator, and would draw other numbers when it runs again: "
            "draw by a key that is an argument, xfn.random.key(seed)"
        )
    return _Attached.apply(rule, len(y), *y, *x)  # type: ignore[no-any-return, no-untyped-call]


class _Attached(torch.autograd.Function):
    """y, which is computed already, as a function of x."""

    @staticmethod
    def forward(rule: Rule, count: int, *tensors: Tensor) -> Outs:
        return tuple(y.detach() for y in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outs) -> None:
        rule, count, *tensors = inputs
        _refuse(rule, any(ctx.needs_input_grad[2 : 2 + count]))
        ctx.rule, ctx.smooth = rule, [smooth(y) for y in output]
        ctx.set_materialize_grads(False)
        x = tuple(tensors[count:])
        if levels()[-1:] == ["Jvp"]:
            ctx.save_for_forward(*x)
        else:
            ctx.save_for_backward(*rule.keep(x, output))

    @staticmethod
    def backward(ctx: Any, *dy: Tensor | None) -> Any:
        none, needs = [None] * (2 + len(dy)), ctx.needs_input_grad[2 + len(dy) :]
        if not any(needs) or all(d is None for d in dy):
            return *none, *[None] * len(needs)
        return *none, *ctx.rule.pull(ctx.saved_tensors, dy, needs)

    @staticmethod
    def jvp(ctx: Any, _rule: None, _count: None, *tangents: Tensor | None) -> Any:
        count = len(ctx.smooth)
        _refuse(ctx.rule, any(t is not None for t in tangents[:count]))
        with forward_mode(True):
            x = tuple(unpack_dual(t).primal for t in ctx.saved_tensors)
            found = iter(ctx.rule.push(x, tangents[count:]))
        return tuple(next(found) if smooth else None for smooth in ctx.smooth)

    @staticmethod
    def vmap(info: Any, in_dims: Dims, rule: Rule, count: int, *tensors: Tensor) -> Any:
        y, x, ydims, xdims = tensors[:count], tensors[count:], in_dims[2 : 2 + count], in_dims[2 + count :]
        if not any(bottom(t).requires_grad for t in tensors) and not {"Grad", "Jvp"} & set(levels()):
            return tuple(t.detach() for t in y), tuple(ydims)
        _refuse(rule, any(escaped(t) for f in rule.origin for t in captured(f)), "mapped")
        mapped, x = rule.batched(x, xdims, info)
        y = tuple(lead(t, dim, info.batch_size) for t, dim in zip(y, ydims, strict=True))
        return _Attached.apply(mapped, count, *y, *x), (0,) * count  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Again:
    """The rule that keeps x, and computes f again."""

    f: Function
    origin: tuple[Callable[..., Any], ...] = ()

    def __call__(self, *x: Tensor) -> Outs:
        return self.f(*x)

    def keep(self, x: Outs, y: Outs) -> Outs:
        return x

    def pull(self, x: Outs, dy: Grads, needs: Sequence[bool]) -> Grads:
        count, given = len(x), blank(dy)
        pulled = lambda *t: tensors(backwards(self.f, t[:count], needs, filled(given, t[count:]))[1])
        return filled(holes(needs), attach(Again(pulled), *x, *tensors(dy)))

    def push(self, x: Outs, tx: Grads) -> Outs:
        count, given = len(x), blank(tx)
        pushed = lambda *t: forwards(self.f, t[:count], filled(given, t[count:]))[1]
        return attach(Again(pushed), *x, *tensors(tx))

    def batched(self, x: Outs, dims: Dims, info: Any) -> tuple["Again", Outs]:
        return Again(func.vmap(self.f, tuple(dims), randomness=info.randomness), self.origin), x


def _generators(x: Outs) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in {t.device for t in x if t.is_cuda})]


def _names(rule: Rule) -> str:
    return " and ".join(getattr(f, "__name__", repr(f)) for f in rule.origin)


def _checked(rule: Rule, x: Outs, y: Outs) -> Outs:
    """y, if it follows from x alone."""
    _refuse(rule, any(bottom(t).requires_grad for t in y) and not any(bottom(t).requires_grad for t in x))
    return y


def _refuse(rule: Rule, found: bool, how: str = "differentiated") -> None:
    """Complain of a tensor that was not passed. What derived rules run has been looked at already."""
    if found and rule.origin:
        raise ValueError(
            f"{_names(rule)} uses a tensor that is {how} and not among its arguments: only what is passed is there "
            "when it runs again, so make it a parameter, f(params, x)"
        )
