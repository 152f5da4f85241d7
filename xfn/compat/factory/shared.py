"""Flags of projections, as configs give them: which have biases, and where q, k and v have one weight."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...factory.sublayer import PROJECTIONS
from ...parts import honours
from .config import xFormerBlockConfig


def flags(blocks: Sequence[xFormerBlockConfig]) -> dict[str, Sequence[bool]]:
    """Which of q, k, v and out have biases, and whether q, k and v share a weight, by the sublayer."""
    found: dict[str, Sequence[bool]] = {}
    for block in blocks:
        for name, part in zip(block.heads, ("attention", "cross"), strict=False):
            heads = getattr(block, name)
            given = heads.get("bias")
            biases = (True,) * 4 if given is None else (given,) * 4 if isinstance(given, bool) else tuple(given)
            within = "q" in honours(getattr(block.stage, part))
            each = (*biases, within and heads.get("use_separate_proj_weight") is False)
            if found.setdefault(f"{block.block_type}.{part}", each) != each:
                raise ValueError("all blocks of a side have the same biases, and share weights alike")
    return found


def left_out(path: str, flags: Mapping[str, Sequence[bool]]) -> bool:
    """Whether a parameter is a bias that is not wanted, or a weight that stands elsewhere already."""
    side, *steps = path.split(".")
    wanted = flags.get(f"{side}.{steps[-3]}") if len(steps) > 2 else None
    if wanted is None or steps[-2] not in PROJECTIONS:
        return False
    if steps[-1] == "bias":
        return not wanted[PROJECTIONS.index(steps[-2])]
    return wanted[-1] and steps[-2] in ("k", "v")


def filled(params: Mapping[str, Any], flags: Mapping[str, Sequence[bool]], side: str) -> Mapping[str, Any]:
    """The parameters of a side, with the weight of q as that of k and v where they share it."""
    names = {name for name in ("attention", "cross") if flags.get(f"{side}.{name}", (False,))[-1]}
    return _filled(params, names) if names else params


def _filled(params: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, own in params.items():
        if name in names and "q" in own:
            weight = own["q"]["weight"]
            found[name] = {**own, **{x: {**own.get(x, {}), "weight": weight} for x in ("k", "v")}}
        else:
            found[name] = _filled(own, names) if isinstance(own, Mapping) else own
    return found
