"""Parameters: nested dicts of tensors, whose names and shapes a signature gives.

    x E, up.weight F E, up.bias? F -> y E

names a tree ``{"up": {"weight": [F, E], "bias": [F]}}``. An absent tensor is an absent key, for vmap and grad take
no ``None``.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .errors import ShapeError
from .kinds import autocast, check_kinds, check_tensors
from .shapes import Shape, Signature


def leaves(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """What is in a tree of dicts, by its path, as ``"up.weight"``."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= leaves(value, f"{path}{name}.") if isinstance(value, Mapping) else {f"{path}{name}": value}
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


def taken(
    op: str, signature: Signature, params: Mapping[str, Any], data: Mapping[str, Tensor | None], *, mixed: bool = False
) -> tuple[dict[str, Any], dict[str, int], Shape]:
    """Every tensor of a call by its path, in the dtype that ``torch.autocast`` asks for, every dim by its letter, and
    the batch; or what is wrong with them. Parameters have no batch: those of many models are mapped over.

    ``mixed``: parameters may be of another dtype than data, and stay as they are.
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"{op} takes its parameters as a dict, but got {type(params).__name__}")
    given = leaves(params)
    wanted = {o.name: o for o in signature.operands if o.name not in data}
    missing = [name for name, o in wanted.items() if name not in given and not o.optional]
    extra = [name for name in given if name not in wanted]
    if missing or extra:
        faults = [f"lack {', '.join(missing)}"] * bool(missing) + [f"have {', '.join(extra)} besides"] * bool(extra)
        every = ", ".join(f"{name}?" if o.optional else name for name, o in wanted.items())
        raise ValueError(f"the parameters of {op} are {every}, but these {' and '.join(faults)}")
    present = {name: t for name, t in data.items() if t is not None}
    check_tensors({**present, **given})
    if not mixed:
        every_one = {**present, **given}
        cast = dict(zip(every_one, autocast(*every_one.values()), strict=True))
        present, given = ({name: cast[name] for name in group} for group in (present, given))
        check_kinds(cast, {})
    for name, tensor in given.items():
        if tensor.dim() != wanted[name].rank:
            dims = f"[{', '.join(wanted[name].dims)}]"
            raise ShapeError(
                f"{op}'s {name} {dims} has shape {list(tensor.shape)}: map over the parameters of many models with vmap"
            )
    tensors = {**data, **present, **given}
    return tensors, *signature.check(tensors)
