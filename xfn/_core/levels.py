"""What is on around a call: levels of torch.func and which of them a tensor belongs to, modes, autograd."""

import sys
from typing import Any

import torch
from torch import _C, Tensor
from torch._C import (
    _dispatch_tls_is_dispatch_key_excluded,
    _dispatch_tls_is_dispatch_key_included,
    _get_tracing_state,
    _is_any_autocast_enabled,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._functorch import (
    CGradInterpreterPtr,
    get_interpreter_stack,
    get_unwrapped,
    is_functorch_wrapped_tensor,
    is_legacy_batchedtensor,
    maybe_get_level,
    peek_interpreter_stack,
)
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from .definition import Args

forward_mode = forward_ad._set_fwd_grad_enabled
"""The context that turns forward mode on; in the ``jvp`` of an ``autograd.Function`` it is off, and where those nest
the outer tangents would be lost."""

transforming = _C._are_functorch_transforms_active
"""Whether a level is open: the one question about them that Dynamo can trace."""

TENSORS = frozenset((Tensor, torch.nn.Parameter))
PLAIN = TENSORS | {type(None), int, float, str}
"""Types of arguments behind which nothing hides."""
UNPACK = torch._VF._unpack_dual  # to look it up takes longer than to call it
AUTOGRAD: Any = _C.DispatchKey.AutogradCPU
BATCHED: Any = _C._parse_dispatch_key("VmapMode")


def levels() -> list[str]:
    """The levels that are open, the innermost last: Grad Jvp Vmap Functionalize; first of all Dual, where forward mode
    was entered by hand."""
    found = [level.key().name for level in get_interpreter_stack() or ()]
    return ["Dual", *found] if forward_ad._current_level >= 0 and "Jvp" not in found else found


def paused() -> bool:
    """Whether a gradient was off where a level was opened. A Function of torch's turns it on again further out."""
    stack = get_interpreter_stack() or ()
    return any(level.key().name == "Grad" and not CGradInterpreterPtr(level).prevGradMode() for level in stack)


def bottom(t: Tensor) -> Tensor:
    """What is left of t below all levels."""
    return bottom(get_unwrapped(t)) if is_functorch_wrapped_tensor(t) else t


def escaped(t: Tensor) -> bool:
    """Whether t belongs to a level that is not open."""
    return maybe_get_level(t) > len(get_interpreter_stack() or ())


def modes() -> bool:
    """Whether a mode is on that may replace tensors, as those that trace and fake do."""
    return bool(_len_torch_dispatch_stack() or _len_torch_function_stack())


def quiet() -> bool:
    """Whether nothing of Python's is on that the dispatcher would not know of: no compilation, mode or transform."""
    return (
        not is_compiling()
        and not _len_torch_dispatch_stack()
        and not _len_torch_function_stack()
        and peek_interpreter_stack() is None
    )


def overt(args: Args) -> bool:
    """Whether it is quiet, and no argument of a type of Python's own."""
    return PLAIN.issuperset(map(type, args)) and quiet()


def looped() -> bool:
    """Whether torch's older vmap is on, that of ``is_grads_batched`` and gradcheck, which makes a loop of every op."""
    return _dispatch_tls_is_dispatch_key_included(BATCHED)


in_loop = is_legacy_batchedtensor
"""Whether it maps over a tensor."""


def plain(args: Args, cast: bool = False) -> bool:
    """Whether the dispatcher would find ordinary tensors and nothing else to do: no compilation, tracing, transform,
    mode, autocast or tangent. ``cast``: what autocast asks for was done."""
    return (
        overt(args)
        and not looped()
        and (cast or not _is_any_autocast_enabled())
        and _get_tracing_state() is None
        and forward_ad._current_level < 0
        and not (_compiled() and _has_tangents(args))
    )


def records(args: Args) -> bool:
    """Whether autograd looks on, at arguments that are ``plain``: it does not inside the kernel of another op."""
    return torch.is_grad_enabled() and requires_grad(args) and not _dispatch_tls_is_dispatch_key_excluded(AUTOGRAD)


def requires_grad(args: Args) -> bool:
    """Whether one of them is a tensor that does."""
    for a in args:  # noqa: SIM110 - half the time of any()
        if a is not None and isinstance(a, Tensor) and a.requires_grad:
            return True
    return False


def _compiled() -> bool:
    """Whether Dynamo has made a graph: it is imported long before, by every optimizer."""
    frames = sys.modules.get("torch._dynamo.convert_frame")
    return frames is not None and bool(getattr(frames, "FRAME_COUNTER", True))


def _has_tangents(args: Args) -> bool:
    """What Python's count of levels does not know: a graph that Dynamo made opens its own and tells nobody."""
    for a in args:  # noqa: SIM110 - half the time of any()
        if type(a) in TENSORS and UNPACK(a, level=0)[1] is not None:
            return True
    return False
