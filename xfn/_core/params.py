"""Parameters: nested dicts of tensors, whose names and shapes a signature gives.

    x E, up.weight F E, up.bias? F -> y E

names a tree ``{"up": {"weight": [F, E], "bias": [F]}}``. An absent tensor is an absent key, for vmap and grad take
no ``None``.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import ShapeError
from .kinds import autocast, check_kinds, check_tensors
from .levels import TENSORS, plain
from .shapes import Shape, Signature


def leaves(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """What is in a tree of dicts, by its path, as ``"up.weight"``."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Tensor) or not isinstance(value, Mapping):
            found[path + name] = value
        else:
            found |= leaves(value, f"{path}{name}.")
    return found


def tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of dicts in which everything has the path that it is named by."""
    found: dict[str, Any] = {}
    for path, value in leaves.items():
        *folders, name = path.split(".")
        place = found
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return found


def listed(params: Mapping[str, Any], *names: str) -> list[Any] | None:
    """The tensors of a dict by these names, None for what it lacks; nothing where it is no dict, or has others."""
    if type(params) is not dict:
        return None
    found = [params.get(name) for name in names]
    return found if len(params) == sum([type(t) in TENSORS for t in found]) else None


KINDS = TENSORS | {type(None)}


class Kind(NamedTuple):
    """What checks look at of a tensor."""

    shape: Shape
    dtype: torch.dtype
    device: torch.device

    def dim(self) -> int:
        return len(self.shape)


def taken(
    op: str, signature: Signature, params: Mapping[str, Any], data: Mapping[str, Tensor | None], *, mixed: bool = False
) -> tuple[dict[str, Any], Mapping[str, int], Shape]:
    """Every tensor of a call by its path, in the dtype that ``torch.autocast`` asks for, every dim by its letter, and
    the batch; or what is wrong with them. Parameters have no batch: those of many models are mapped over.

    ``mixed``: parameters may be of another dtype than data, and stay as they are.
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"{op} takes its parameters as a dict, but got {type(params).__name__}")
    given = leaves(params)
    tensors = {**data, **given}
    flat = tuple(tensors.values())
    known = TENSORS.issuperset(map(type, given.values())) and KINDS.issuperset(map(type, data.values()))
    if known and plain(flat):
        kinds = tuple([None if t is None else (t.shape, t.dtype, t.device) for t in flat])
        return tensors, *_known(op, signature, mixed, len(data), tuple(tensors), kinds)
    _check_names(op, signature, list(data), list(given))
    _check_present(signature, tensors)
    present = {name: t for name, t in tensors.items() if t is not None or name in given}
    check_tensors(present)
    if not mixed:
        tensors |= zip(present, autocast(*present.values()), strict=True)
    return tensors, *_check(op, signature, mixed, len(data), tensors)


@lru_cache(maxsize=4096)
def _known(
    op: str, signature: Signature, mixed: bool, data: int, names: tuple[str, ...], kinds: tuple[Any, ...]
) -> tuple[Mapping[str, int], Shape]:
    """What tensors of such kinds come to; the same call with others of them needs no second look."""
    _check_names(op, signature, names[:data], names[data:])
    known = dict(zip(names, [None if kind is None else Kind(*kind) for kind in kinds], strict=True))
    _check_present(signature, known)
    sizes, batch = _check(op, signature, mixed, data, known)
    return MappingProxyType(dict(sizes)), batch


def _check_present(signature: Signature, tensors: Mapping[str, Any]) -> None:
    check_tensors({o.name: None for o in signature.operands if not o.optional and tensors.get(o.name) is None})


def _check_names(op: str, signature: Signature, data: Sequence[str], given: Sequence[str]) -> None:
    wanted = {o.name: o for o in signature.operands if o.name not in data}
    missing = [name for name, o in wanted.items() if name not in given and not o.optional]
    extra = [name for name in given if name not in wanted]
    if missing or extra:
        faults = [f"lack {', '.join(missing)}"] * bool(missing) + [f"have {', '.join(extra)} besides"] * bool(extra)
        every = ", ".join(f"{name}?" if o.optional else name for name, o in wanted.items())
        raise ValueError(f"the parameters of {op} are {every}, but these {' and '.join(faults)}")


def _check(
    op: str, signature: Signature, mixed: bool, data: int, tensors: Mapping[str, Any]
) -> tuple[Mapping[str, int], Shape]:
    """The dims and the batch of tensors, or of their kinds; the first ``data`` are no parameters."""
    if not mixed:
        check_kinds({name: t for name, t in tensors.items() if t is not None}, {})
    of = {o.name: o for o in signature.operands}
    for name, tensor in list(tensors.items())[data:]:
        if tensor.dim() != of[name].rank:
            dims = f"[{', '.join(of[name].dims)}]"
            raise ShapeError(
                f"{op}'s {name} {dims} has shape {list(tensor.shape)}: map over the parameters of many models with vmap"
            )
    return signature.check(tensors)
