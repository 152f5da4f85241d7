"""Every query attends to the keys in the live tiles of a layout."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ... import layout as layouts
from ... import random
from ..._core.constants import constant
from ..._core.dims import Dims
from ..._core.fields import check_fields
from ..._core.kinds import check_probability
from ...bias import Bias
from ...layout import Layout
from ...layout.value import check_block
from ...ops.attention import attention
from ...ops.blocksparse import blocksparse_attention
from .._fields import Drops, call_named, check_named, drawing, settle

GIVEN = ("M", "N", "block", "key")


@dataclass(frozen=True)
class Blocksparse(Drops):
    """softmax(scale · q kᵀ + bias) v over the live tiles of an :mod:`xfn.layout`; the bias trims within tiles.

    Attributes:
        layout: the name of one, as ``"bigbird"`` or ``"fixed"``; or the tiles themselves, True where they are live,
            ``[M/block, N/block]`` or ``[H, M/block, N/block]`` in nested lists.
        block: queries and keys of a tile: 8, 16, 32, 64 or 128.
        numbers: what the named layout takes, as ``{"window": 3}``; the lengths, the block and the key are known.
        seed: of what it draws by chance.
        p: probability of dropping a weight in training.
        scale: factor of q kᵀ; by default K ** -0.5.

    Example:
        >>> q, k, v = random.normal(random.key(0), (3, 100, 2, 4))
        >>> Blocksparse("fixed", block=8, numbers={"window": 32}).apply({}, q, k, v).shape
        torch.Size([100, 2, 4])

    Source: Child, Gray, Radford and Sutskever, "Generating long sequences with sparse transformers" (2019).
    """

    layout: str | Sequence[Any] = "bigbird"
    block: int = 16
    numbers: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    p: float = 0.0
    scale: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_probability(self.p)
        check_block(self.block)
        settle(self, "layout")
        settle(self, "numbers")
        if isinstance(self.layout, str):
            check_named(layouts, ("M",), self.layout, self.numbers, GIVEN)
        elif self.numbers:
            raise TypeError(f"tiles that are listed take no numbers, but got {dict(self.numbers)}")
        else:
            Layout(self.tiles, self.block)

    def init(self, key: Tensor, dims: Dims) -> dict[str, Any]:
        return {}

    @property
    def tiles(self) -> Tensor:
        return torch.tensor(self.layout).bool()

    def apply(
        self, params: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, bias: Bias | Tensor | None = None, *,
        key: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        if not (q.shape[-3] and k.shape[-3]):  # of nothing there is no layout
            return attention(q, k, v, bias)
        found = _found(self, q.shape[-3], k.shape[-3], q.device)
        p, key = drawing(self.p, key)
        return blocksparse_attention(found, q, k, v, bias, p, self.scale, key=key)


@constant
def _found(part: Blocksparse, M: int, N: int, device: torch.device) -> Layout:
    if not isinstance(part.layout, str):
        return Layout(part.tiles, part.block, (M, N)).to(device)
    given = {"M": M, "N": N, "block": part.block, "key": random.key(part.seed)}
    made: Layout = call_named(layouts, part.layout, part.numbers, given)
    return made.to(device)
