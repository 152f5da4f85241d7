"""Which backend runs a call, or why none can.

A kernel module gives ``supports(call) -> list[str]``, its reasons against the call, and one function per
member of the op's family that it implements. The first backend without a reason runs the call; one that
was named never falls back. A module may also have ``certain(device, given) -> bool``: whether it supports all calls
on such a device whose operands and constants are those named in ``given``, so that none needs a look; and
``worth(call) -> bool``, whether it should run a call that it can and that names no backend; and ``SWIFT``, an op that
does the plainest calls without Python.
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any

import torch

from .errors import Unsupported

OVERRIDE = os.environ.get("XFN_BACKEND")
"""The one environment variable: a backend's name, for every call that names none. Read here, once, at import."""


@dataclass(frozen=True)
class Call:
    """What a kernel may look at before it says whether it can: every tensor of one raw op, by its name."""

    op: str
    member: str
    tensors: Mapping[str, Any]
    options: Mapping[str, float]
    needs: Sequence[bool] = ()

    def __str__(self) -> str:
        given = {name: t for name, t in self.tensors.items() if t is not None}
        listed = ", ".join(f"{name}{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for name, t in given.items())
        device = next(iter(given.values())).device
        return f"{self.op}{'' if self.member == 'forward' else '.' + self.member}({listed}) on {device.type}"


def module(backend: str, op: str) -> ModuleType:
    """The kernels of ``op`` in one language, imported when first asked for."""
    found = _found(backend, op)
    if isinstance(found, str):
        raise ImportError(found)
    return found


@cache
def _found(backend: str, op: str) -> ModuleType | str:
    """A module, or why there is none: to find that out again would cost a millisecond a call."""
    try:
        return importlib.import_module(f"xfn.kernels.{backend}.{op}")
    except ImportError as error:
        return str(error)


@cache
def swift(backend: str, op: str) -> Callable[..., Any] | None:
    """The op that does the plainest calls without Python, if any. It returns nothing but None where a call is not of
    them."""
    try:
        return None if OVERRIDE else getattr(module(backend, op), "SWIFT", None)
    except ImportError:
        return None


def reasons(backend: str, call: Call) -> list[str]:
    """Why ``backend`` cannot run ``call``; empty when it can."""
    try:
        kernels = module(backend, call.op)
    except ImportError as error:
        return [f"it cannot be imported: {error}"]
    if not hasattr(kernels, call.member):
        return [f"it has no {call.member}"]
    return list(kernels.supports(call))


def at_once(
    backends: Sequence[str], op: str, member: str, backend: str | None, device: torch.device, given: tuple[str, ...]
) -> Any:
    """The function that runs all such calls, where that is certain without a look at them; otherwise None."""
    try:
        kernels = module(backend or backends[0], op)
    except ImportError:
        return None
    certain = getattr(kernels, "certain", None)
    return getattr(kernels, member, None) if certain and certain(device.type, given) else None


def _always(call: Call) -> bool:
    return True


def objections(name: str, call: Call, named: bool) -> list[str]:
    """Its reasons; or, unless it was named, that others are better at it."""
    found = reasons(name, call)
    if found or named or getattr(module(name, call.op), "worth", _always)(call):
        return found
    return ["it is slower than others at such a size, and has to be named"]


def choose(backends: Sequence[str], call: Call, backend: str | None) -> Any:
    """The function that runs ``call``."""
    against: dict[str, list[str]] = {}
    for name in (backend,) if backend else backends:
        against[name] = objections(name, call, bool(backend))
        if not against[name]:
            return getattr(module(name, call.op), call.member)
    lines = [f"    {name}: {'; '.join(why)}" for name, why in against.items()]
    raise Unsupported("\n".join((f"no backend can run {call}", *lines, '    backend="reference" always can, slowly')))


def whole(backends: Sequence[str], call: Call, part: str, backend: str | None) -> Any:
    """The function that runs ``call``, if the backend that would run its ``part`` has one; otherwise None."""
    for name in (backend,) if backend else backends:
        if not objections(name, call, bool(backend)):
            return getattr(module(name, call.op), call.member)
        if not objections(name, replace(call, member=part), bool(backend)):
            return None
    return None
