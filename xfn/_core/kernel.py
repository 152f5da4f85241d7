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
the dispatcher, straight to the kernel, or to the Function around it. On a CPU the plainest calls of most ops do not
come here at all: see ``Primitive.swift``.

This file and ``levels`` lean on torch's private names: ``_SingleLevelFunction`` with its switch,
``_unpack_dual``/``_make_dual``, ``_set_fwd_grad_enabled``, the autograd keysets, vmap's batched tensors, what ``plain``
asks, an op's ``_op``, and groups of processes by their names. Should a release take one away, an
``autograd.Function`` with ``setup_context``, ``vmap`` and ``jvp`` is the second road: the same rules fit, but nested
forward mode must be sent to the reference by hand, and it cannot be compiled inside a transform.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import _C, Tensor
from torch._C._functorch import _add_batch_dim, _unwrap_batched
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from .definition import Args as Args
from .definition import Definition
from .definition import Grads as Grads
from .definition import Outs as Outs
from .levels import UNPACK, looped, plain, requires_grad

LIBRARY = torch.library.Library("xfn", "FRAGMENT")

MAPPED = _C.DispatchKeySet(_C.DispatchKey.FuncTorchBatched)
MAKE = torch._VF._make_dual  # to look it up takes longer than to call it


class _Reverse(_SingleLevelFunction):
    """Reverse mode of one autograd level; the levels below see the redispatched call."""

    @staticmethod
    def forward(ctx: Any, op: "RawOp", keys: Any, duals: Args, *args: Any) -> Any:
        # Function switches both modes off for its forward, but the levels below this one want them as they were.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), _C._AutoDispatchBelowAutograd():
            outs = _tuple(op.overload.redispatch(keys & _C._after_autograd_keyset, *args))
        ctx.op, ctx.count = op, len(args)
        ctx.rest = [None if isinstance(a, Tensor) else a for a in args]
        ctx.save_for_backward(*(a if isinstance(a, Tensor) else None for a in duals), *outs)
        ctx.set_materialize_grads(False)
        return outs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        if all(c is None for c in cotangents):
            return (None,) * (3 + ctx.count)
        saved = ctx.saved_tensors
        args = [rest if tensor is None else tensor for tensor, rest in zip(saved, ctx.rest, strict=False)]
        needs = ctx.needs_input_grad[3:]
        return None, None, None, *ctx.op.definition.vjp(args, saved[ctx.count :], cotangents, needs)


class Short(NamedTuple):
    """A call that goes past the dispatcher: y = kernel(x, c), and where nobody is to differentiate that again, the
    gradients of x are adjoint(x, c, y, dy, needs); None: it must be looked at first which kernel that takes. Numbers of
    operands that are ``unread(needs, **options)`` are not kept."""

    definition: Definition
    kernel: Callable[..., Outs]
    adjoint: Callable[..., Grads] | None
    options: Mapping[str, float]
    backend: str | None
    unread: Callable[..., Sequence[int]] | None = None

    def record(self, x: Grads, c: Grads) -> Outs:
        """y, with autograd looking on."""
        return _Short.apply(self, len(x), *x, *c)  # type: ignore[attr-defined, no-any-return]

    def kept(self, tensors: Grads, needs: Sequence[bool]) -> Grads:
        """What the gradient may read; for what it will not, one line of NaNs stands for all."""
        if self.unread is None:
            return tensors
        unread = self.unread(needs, **self.options)
        return [_hollow(t) if t is not None and i in unread else t for i, t in enumerate(tensors)]


def _hollow(t: Tensor) -> Tensor:
    return t.new_full(t.shape[-1:], math.nan).expand(t.shape)


class _Short(_SingleLevelFunction):
    """Reverse mode where autograd is alone."""

    @staticmethod
    def forward(ctx: Any, call: Short, count: int, *tensors: Tensor | None) -> Any:
        outs = tuple(call.kernel(tensors[:count], tensors[count:], **call.options))
        ctx.call, ctx.count = call, count
        ctx.save_for_backward(*call.kept(tensors, ctx.needs_input_grad[2:]), *outs)
        ctx.set_materialize_grads(False)
        return outs

    @staticmethod
    def backward(ctx: Any, *dy: Tensor | None) -> Any:
        needs, saved, call, count = ctx.needs_input_grad[2:], ctx.saved_tensors, ctx.call, ctx.count
        tensors, y = saved[: len(needs)], saved[len(needs) :]
        none = [None] * (len(needs) - count)
        if dy[0] is None and all(c is None for c in dy):
            return (None,) * (2 + len(needs))
        if call.adjoint is not None and not torch.is_grad_enabled() and plain(dy):
            x, c = tensors[:count], tensors[count:]
            return None, None, *call.adjoint(x, c, y, dy, needs[:count], **call.options), *none
        numbers = (*call.options.values(), call.backend)
        needs = (*needs, *[False] * len(numbers))
        return None, None, *call.definition.vjp((*tensors, *numbers), y, dy, needs)[:count], *none


class RawOp:
    """An op of the ``xfn`` namespace, registered with the dispatcher when made."""

    def __init__(self, definition: Definition) -> None:
        name = definition.name
        self.definition = definition
        LIBRARY.define(f"{name}{definition.schema}", tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, self._compute, "CompositeExplicitAutograd")
        LIBRARY.impl(name, lambda *args: _outs(self._autograd(*args)), "Autograd", with_keyset=True)
        torch.library.register_fake(f"xfn::{name}", lambda *args: _outs(definition.fake(*args)), lib=LIBRARY)
        LIBRARY.impl(name, lambda *args: _outs(self._batched(*args)), "FuncTorchBatched", with_keyset=True)
        self.overload: Any = getattr(torch.ops.xfn, name).default

    def __call__(self, *args: Any) -> Outs:
        return _tuple(self.overload(*args))

    def _compute(self, *args: Any) -> Any:
        with _C._DisableAutocast():
            return _outs(_filled(args, self.definition.compute(*args)))

    def _batched(self, _: Any, *args: Any) -> Outs:
        """As ``torch.library.register_vmap`` has it, but for the walks over trees: arguments and results are flat."""
        interpreter: Any = retrieve_current_functorch_interpreter()
        level = interpreter.level()
        pairs = [_unwrap_batched(a, level) if isinstance(a, Tensor) else (a, None) for a in args]
        with _C._ExcludeDispatchKeyGuard(MAPPED):
            if all(dim is None for _, dim in pairs):
                return self(*args)
            values, dims = zip(*pairs, strict=True)
            outs, dims = self.definition.vmap(interpreter.batch_size(), dims, *values)
        return tuple(o if dim is None else _add_batch_dim(o, dim, level) for o, dim in zip(outs, dims, strict=True))

    def _autograd(self, keys: Any, *args: Any) -> Outs:
        pairs = [_unpack(a) for a in args]
        tangents = [tangent for _, tangent in pairs]
        if all(t is None for t in tangents):
            return self._reverse(keys, args, args)
        instead = self.definition.composite(*args)
        if instead is not None:
            return _filled(args, instead)
        primals = [primal for primal, _ in pairs]
        recorded = torch.is_grad_enabled() and requires_grad(args)  # then what is saved must be duals
        both = None if recorded or looped() else self.definition.both(primals, tangents)
        outs = both[0] if both else self._reverse(keys, primals, args)
        dots = both[1] if both else self.definition.jvp(primals, outs, tangents)
        return tuple(out if dot is None else MAKE(out, dot, level=0) for out, dot in zip(outs, dots, strict=True))

    def _reverse(self, keys: Any, args: Args, duals: Args) -> Outs:
        if torch.is_grad_enabled() and requires_grad(args):
            allowed = _C._functorch.get_single_level_autograd_function_allowed()
            _C._functorch.set_single_level_autograd_function_allowed(True)
            try:
                return _Reverse.apply(self, keys, duals, *args)  # type: ignore[attr-defined, no-any-return]
            finally:
                _C._functorch.set_single_level_autograd_function_allowed(allowed)
        with _C._AutoDispatchBelowAutograd():
            return _tuple(self.overload.redispatch(keys & _C._after_autograd_keyset, *args))


def _outs(outs: tuple[Any, ...]) -> Any:
    """Results as the dispatcher takes them: a single one is no tuple."""
    return outs[0] if len(outs) == 1 else outs


def _tuple(outs: Any) -> Outs:
    return outs if isinstance(outs, tuple) else (outs,)


def _filled(args: Args, outs: Grads) -> Outs:
    """An op returns tensors: empty ones for what is absent."""
    return tuple([args[0].new_empty(0) if out is None else out for out in outs])


def _unpack(value: Any) -> tuple[Any, Tensor | None]:
    """A value and its tangent; torch's symbolic zero has no storage and counts as no tangent."""
    if not (isinstance(value, Tensor) and value.is_floating_point()):
        return value, None
    primal, tangent = UNPACK(value, level=0)
    return primal, None if tangent is None or tangent._is_zerotensor() else tangent


def unframed(op: Any) -> Callable[..., Any]:
    """An op of torch without the frame of Python around it, which is a tenth of a short call."""
    return op._op  # type: ignore[no-any-return]


def variable(t: Tensor) -> Tensor:
    """``t``, made to require grad at the level of autograd where it lives; functorch forbids that by default."""
    allowed = _C._functorch.get_inplace_requires_grad_allowed()
    _C._functorch.set_inplace_requires_grad_allowed(True)
    try:
        return t.requires_grad_()
    finally:
        _C._functorch.set_inplace_requires_grad_allowed(allowed)


def named_group(name: str) -> Any:
    """The group of processes of that name: a raw op is given names, not groups."""
    from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]

    return _resolve_process_group(name)  # type: ignore[arg-type]
