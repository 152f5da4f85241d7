"""Checkpoints that keep what some operators compute, and compute the rest again."""

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.utils import checkpoint as torchs

Mode: Any = torchs.TorchDispatchMode  # type: ignore[attr-defined]
Policy = Callable[..., bool] | Sequence[Any] | None
KEPT = ("aten.addmm.default", "aten.mm.default", "xfn.attention_forward.default")
"""What is kept where no policy says otherwise."""


def checkpoint(
    function: Callable[..., Any], *args: Any, preserve_rng_state: bool = True, policy_fn: Policy = None, **kwargs: Any
) -> Any:
    """function(\\*args, \\*\\*kwargs), of which the backward pass computes again what a policy does not keep.

    Args:
        function: what is run, twice.
        args, kwargs: what it is given.
        preserve_rng_state: whether both runs draw the same from torch's generators.
        policy_fn: a list of operators that are kept, as :func:`list_operators` names them; or a function of a context,
            an operator and its arguments that tells whether it is.

    Example:
        >>> x = torch.ones(2, 2, requires_grad=True)
        >>> checkpoint(lambda x: (x @ x).relu().sum(), x, policy_fn=["aten.mm.default"]).backward()
        >>> x.grad[0]
        tensor([4., 4.])
    """
    contexts = partial(_contexts, _decides(policy_fn), preserve_rng_state)
    return torchs.checkpoint(
        function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state, context_fn=contexts, **kwargs
    )


def list_operators(function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
    """The operators that function(\\*args, \\*\\*kwargs) calls, in their order.

    Example:
        >>> list_operators(torch.addmm, *torch.ones(3, 2, 2))
        [<OpOverload(op='aten.addmm', overload='default')>]
    """
    with _Listing() as found:
        function(*args, **kwargs)
    return list(found.operators)


class _Listing(Mode):  # type: ignore[misc]
    """A mode that writes operators down."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.append(func)
        return func(*args, **(kwargs or {}))


class _Keeping(Mode):  # type: ignore[misc]
    """A mode that keeps what is to be kept, or finds it again; what was written to since is computed."""

    def __init__(self, decides: Callable[..., bool], found: bool, kept: dict[Any, deque[Any]], drawn: bool) -> None:
        super().__init__()
        self.decides, self.found, self.kept, self.drawn = decides, found, kept, drawn

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        passing = func in PASSING or (self.drawn and torch.Tag.nondeterministic_seeded in func.tags)
        if passing or not self.decides(self, func, *args, **(kwargs or {})):
            return func(*args, **(kwargs or {}))
        if self.found and self.kept[func]:
            out, versions = self.kept[func].popleft()
            if versions == _versions(out):
                return _afresh(out)
            return func(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if not self.found:
            self.kept[func].append((out, _versions(out)))
        return out


PASSING = frozenset((torch.ops.aten.detach.default, torch.ops.aten._to_copy.default, torch.ops.aten.lift_fresh.default))
"""What is never kept, for autograd and autocast call it in one run and not in the other."""


def _versions(out: Any) -> list[int]:
    several = out if isinstance(out, (tuple, list)) else (out,)
    return [t._version for t in several if isinstance(t, Tensor)]


def _afresh(out: Any) -> Any:
    """The same numbers, in tensors that autograd has not seen."""
    if isinstance(out, (tuple, list)):
        return type(out)(map(_afresh, out))
    return out.detach() if isinstance(out, Tensor) else out


def _contexts(decides: Callable[..., bool], drawn: bool) -> tuple[_Keeping, _Keeping]:
    kept: dict[Any, deque[Any]] = defaultdict(deque)
    return _Keeping(decides, False, kept, drawn), _Keeping(decides, True, kept, drawn)


def _decides(policy: Policy) -> Callable[..., bool]:
    """A function of a context, an operator and its arguments; that of old took no context."""
    if callable(policy):
        old = next(iter(signature(policy).parameters)) in ("func", "op")
        return (lambda ctx, *args, **kwargs: policy(*args, **kwargs)) if old else policy
    names = {str(op).removeprefix("torch.ops.") for op in (KEPT if policy is None else policy)}
    return lambda ctx, func, *args, **kwargs: str(func) in names
