"""Raw ops: tensors in, tensors out, and right under every dispatch key that a transform may bring.

A raw op is opaque to Dynamo, AOTAutograd, Inductor and export: it is captured, never looked into. Four
kernels make it whole:

* one that computes, below autograd, on plain tensors;
* a fake one, which knows the shapes;
* one for vmap, which makes of a mapped dim one more batch dim;
* one for autograd, which takes reverse mode through a single-level Function whose forward redispatches
  below autograd, and forward mode by unpacking and making duals. Both ask the same rule.

So nobody who calls the op, by whatever road, gets a silent zero for a gradient.

Where nothing is on that the dispatcher would have to serve, a call is ``plain`` and takes the short road: past
the dispatcher, straight to what computes, or to the Function around it.

This file alone leans on torch's private names: ``_SingleLevelFunction`` with its switch,
``_unpack_dual``/``_make_dual``, ``_set_fwd_grad_enabled``, the autograd keysets, and, in ``plain``, the
dispatcher's state. Should a release take
one away, an ``autograd.Function`` with ``setup_context``, ``vmap`` and ``jvp`` is the second road: the same
rules fit, but nested forward mode must be sent to the reference by hand, and it cannot be compiled inside a
transform.
"""

import sys
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import _C, Tensor
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

LIBRARY = torch.library.Library("xfn", "FRAGMENT")

TENSORS = frozenset((Tensor, torch.nn.Parameter))
PLAIN = TENSORS | {type(None), int, float, str}
"""Types of arguments behind which nothing hides."""
IDLE = _C.DispatchKeySet(_C.DispatchKey.BackendSelect).add(_C.DispatchKey.ADInplaceOrView).raw_repr()
"""The keys that the dispatcher adds to every call when no mode, transform or tracer does."""

Args = Sequence[Any]
Outs = tuple[Tensor, ...]
Grads = Sequence[Tensor | None]


class Definition(Protocol):
    """What an op is made of. In the rules ``None`` is an absent argument, or a derivative that is zero."""

    name: str
    schema: str
    operands: list[Any]
    """One for each tensor; these come first."""

    def compute(self, *args: Any) -> Grads:
        """The outputs; None where one is a gradient that nobody needs."""
        ...

    def fake(self, *args: Any) -> Outs: ...

    def vmap(self, info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Outs, tuple[int | None, ...]]: ...

    def vjp(self, args: Args, outs: Outs, cotangents: Grads, needs: Sequence[bool]) -> Grads: ...

    def jvp(self, args: Args, outs: Outs, tangents: Grads) -> Grads: ...

    def composite(self, *args: Any) -> Grads | None:
        """The op in plain torch, to be differentiated instead of it in forward mode; None: there is a rule."""


class _Reverse(_SingleLevelFunction):
    """Reverse mode of one autograd level; the levels below see the redispatched call."""

    @staticmethod
    def forward(ctx: Any, op: "RawOp", keys: Any, duals: Args, *args: Any) -> Any:
        if keys is None:
            outs = _filled(args, op.definition.compute(*args))
        else:
            # Function switches both modes off for its forward, but the levels below want them as they were.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), _C._AutoDispatchBelowAutograd():
                outs = op.overload.redispatch(keys & _C._after_autograd_keyset, *args)
        count = len(op.definition.operands)
        ctx.op, ctx.rest = op, args[count:]
        ctx.save_for_backward(*duals[:count], *outs)
        ctx.set_materialize_grads(False)
        return outs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        needs, definition = ctx.needs_input_grad[3:], ctx.op.definition
        if all(c is None for c in cotangents):
            return (None,) * (3 + len(needs))
        saved, count = ctx.saved_tensors, len(definition.operands)
        args = (*saved[:count], *ctx.rest)
        return None, None, None, *definition.vjp(args, saved[count:], cotangents, needs)


class RawOp:
    """An op of the ``xfn`` namespace, registered with the dispatcher when made."""

    def __init__(self, definition: Definition) -> None:
        name = definition.name
        self.definition = definition
        LIBRARY.define(f"{name}{definition.schema}", tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, self._compute, "CompositeExplicitAutograd")
        LIBRARY.impl(name, self._autograd, "Autograd", with_keyset=True)
        torch.library.register_fake(f"xfn::{name}", definition.fake, lib=LIBRARY)
        torch.library.register_vmap(f"xfn::{name}", definition.vmap, lib=LIBRARY)
        self.overload: Any = getattr(torch.ops.xfn, name).default

    def __call__(self, *args: Any) -> Any:
        """The outputs; of a gradient that is not needed, no one knows what."""
        return self.direct(*args) if plain(args) else self.overload(*args)

    def direct(self, *args: Any) -> Any:
        """The op on arguments that are ``plain``."""
        if self.records(args):
            return _Reverse.apply(self, None, args, *args)  # type: ignore[attr-defined]
        return self.definition.compute(*args)

    @staticmethod
    def records(args: Args) -> bool:
        """Whether autograd looks on, at arguments that are ``plain``: it does not inside the kernel of another op."""
        excluded = _C._dispatch_tls_is_dispatch_key_excluded
        return torch.is_grad_enabled() and _requires_grad(args) and not excluded(_C.DispatchKey.AutogradCPU)

    def _compute(self, *args: Any) -> Outs:
        with _C._DisableAutocast():
            return _filled(args, self.definition.compute(*args))

    def _autograd(self, keys: Any, *args: Any) -> Outs:
        pairs = [_unpack(a) for a in args]
        tangents = [tangent for _, tangent in pairs]
        if all(t is None for t in tangents):
            return self._reverse(keys, args, args)
        instead = self.definition.composite(*args)
        if instead is not None:
            return _filled(args, instead)
        primals = [primal for primal, _ in pairs]
        outs = self._reverse(keys, primals, args)
        dots = self.definition.jvp(primals, outs, tangents)
        return tuple(
            out if dot is None else torch._VF._make_dual(out, dot, level=0) for out, dot in zip(outs, dots, strict=True)
        )

    def _reverse(self, keys: Any, args: Args, duals: Args) -> Outs:
        if torch.is_grad_enabled() and _requires_grad(args):
            allowed = _C._functorch.get_single_level_autograd_function_allowed()
            _C._functorch.set_single_level_autograd_function_allowed(True)
            try:
                return _Reverse.apply(self, keys, duals, *args)  # type: ignore[attr-defined, no-any-return]
            finally:
                _C._functorch.set_single_level_autograd_function_allowed(allowed)
        with _C._AutoDispatchBelowAutograd():
            return self.overload.redispatch(keys & _C._after_autograd_keyset, *args)  # type: ignore[no-any-return]


def plain(args: Args) -> bool:
    """Whether the dispatcher would find ordinary tensors, on a device, and nothing else to do: no compilation, tracing,
    transform, mode, autocast or tangent."""
    return (
        not torch.compiler.is_compiling()
        and PLAIN.issuperset(map(type, args))
        and _C._dispatch_tls_local_include_set().raw_repr() == IDLE
        and not _C._len_torch_function_stack()
        and not _C._is_any_autocast_enabled()
        and not args[0].is_meta
        and forward_ad._current_level < 0
        and ("torch._dynamo" not in sys.modules or not _has_tangents(args))
    )


def _has_tangents(args: Args) -> bool:
    """What Python's count of levels does not know: a graph that Dynamo made opens its own and tells nobody."""
    return any(type(a) in TENSORS and _unpack(a)[1] is not None for a in args)


def _requires_grad(args: Args) -> bool:
    for a in args:  # noqa: SIM110 - half the time of any()
        if a is not None and isinstance(a, Tensor) and a.requires_grad:
            return True
    return False


def _filled(args: Args, outs: Grads) -> Outs:
    """An op returns tensors: empty ones for what is absent."""
    return tuple([args[0].new_empty(0) if out is None else out for out in outs])


def _unpack(value: Any) -> tuple[Any, Tensor | None]:
    """A value and its tangent; torch's symbolic zero has no storage and counts as no tangent."""
    if not (isinstance(value, Tensor) and value.is_floating_point()):
        return value, None
    primal, tangent = torch._VF._unpack_dual(value, level=0)
    return primal, None if tangent is None or tangent._is_zerotensor() else tangent


def variable(t: Tensor) -> Tensor:
    """``t``, made to require grad at the level of autograd where it lives; functorch forbids that by default."""
    allowed = _C._functorch.get_inplace_requires_grad_allowed()
    _C._functorch.set_inplace_requires_grad_allowed(True)
    try:
        return t.requires_grad_()
    finally:
        _C._functorch.set_inplace_requires_grad_allowed(allowed)
