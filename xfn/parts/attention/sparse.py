"""Every query attends to the keys of a pattern, coefficient by coefficient."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ... import patterns, random
from ..._core.dims import Dims
from ..._core.errors import ShapeError
from ..._core.fields import check_fields
from ..._core.kinds import check_probability
from ...bias import Bias
from .._fields import Drops, call_named, check_named, settle
from .._patterns import attend

GIVEN = ("length", "heads", "key")


@dataclass(frozen=True)
class Sparse(Drops):
    """softmax(scale · q kᵀ + bias) v over the entries of one of :mod:`xfn.patterns`.

    Attributes:
        pattern: its name, as ``"bigbird"`` or ``"axial_2d"``.
        numbers: what it takes, as ``{"h": 8, "w": 8}``; the length, heads and the key are known.
        seed: of what it draws by chance.
        p: probability of dropping a weight in training.
        scale: factor of q kᵀ; by default K ** -0.5.

    Example:
        >>> Sparse("axial_2d", {"h": 2, "w": 2}).mask(4, 4, 1).int()
        tensor([[1, 1, 1, 0],
                [1, 1, 0, 1],
                [1, 0, 1, 1],
                [0, 1, 1, 1]], dtype=torch.int32)

    Source: Child, Gray, Radford and Sutskever, "Generating long sequences with sparse transformers" (2019).
    """

    pattern: str = "bigbird"
    numbers: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    p: float = 0.0
    scale: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_probability(self.p)
        settle(self, "numbers")
        check_named(patterns, ("length", "h"), self.pattern, self.numbers, GIVEN)

    def init(self, key: Tensor, dims: Dims) -> dict[str, Any]:
        return {}

    def mask(self, M: int, N: int, H: int) -> Tensor:
        """Of M queries and N keys, both counted from the first; a pattern over a grid has as many as the grid."""
        given = {"length": max(M, N), "heads": H, "key": random.key(self.seed)}
        found: Tensor = call_named(patterns, self.pattern, self.numbers, given)
        if found.dtype != torch.bool:
            raise TypeError(f"patterns.{self.pattern} gives {found.dtype}, but a pattern is boolean")
        if (places := found.shape[-1]) < max(M, N) or ("h" in self.numbers and places != max(M, N)):
            raise ShapeError(f"{self.pattern} of {dict(self.numbers)} has {places} places, but there are {M} × {N}")
        return found[..., :M, :N]

    def apply(
        self, params: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, bias: Bias | Tensor | None = None, *,
        key: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return attend(self, q, k, v, bias, key)
