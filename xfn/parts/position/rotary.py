"""Queries and keys that turn by an angle that grows with their position."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..._core.dims import Dims
from ..._core.fields import check_fields
from ...ops.rotary import PAIRINGS, rotary


@dataclass(frozen=True)
class Rotary:
    """q and k turned within their heads, so that q·k sees how far apart they are (Su et al., "RoFormer", 2021).

    Attributes:
        base: of the frequencies.
        width: how many features of a head turn, from the first on; by default all.
        pairing: ``"halves"`` or ``"adjacent"``, as of :func:`xfn.rotary`.
    """

    base: float = 10000.0
    width: int | None = None
    pairing: Literal["halves", "adjacent"] = "halves"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.base <= 0:
            raise ValueError(f"base={self.base} must be above 0")
        if self.pairing not in PAIRINGS:
            raise ValueError(f"no pairing is called {self.pairing!r}; there are {', '.join(PAIRINGS)}")

    def init(self, key: Tensor, dims: Dims) -> dict[str, Tensor]:
        width = dims.head if self.width is None else self.width
        if width % 2 or width > dims.head:
            raise ValueError(f"Rotary turns an even number of features, but width={width} of a head's {dims.head}")
        return {}

    def apply(self, params: dict[str, Tensor], q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return rotary(q, k, base=self.base, width=self.width, pairing=self.pairing)
