"""Which levels of torch.func are open, and which of them a tensor belongs to."""

from torch import _C, Tensor
from torch._C._functorch import get_interpreter_stack, get_unwrapped, is_functorch_wrapped_tensor, maybe_get_level
from torch.autograd import forward_ad

forward_mode = forward_ad._set_fwd_grad_enabled
"""The context that turns forward mode on; in the ``jvp`` of an ``autograd.Function`` it is off, and where those nest
the outer tangents would be lost."""

transforming = _C._are_functorch_transforms_active
"""Whether a level is open: the one question about them that Dynamo can trace."""


def levels() -> list[str]:
    """The levels that are open, the innermost last: Grad Jvp Vmap Functionalize; first of all Dual, where forward mode
    was entered by hand."""
    found = [level.key().name for level in get_interpreter_stack() or ()]
    return ["Dual", *found] if forward_ad._current_level >= 0 and "Jvp" not in found else found


def bottom(t: Tensor) -> Tensor:
    """What is left of t below all levels."""
    return bottom(get_unwrapped(t)) if is_functorch_wrapped_tensor(t) else t


def escaped(t: Tensor) -> bool:
    """Whether t belongs to a level that is not open."""
    return maybe_get_level(t) > len(get_interpreter_stack() or ())
