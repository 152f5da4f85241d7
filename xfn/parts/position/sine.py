"""Sines and cosines, added."""

from dataclasses import dataclass

from torch import Tensor

from ..._core.dims import Dims
from ..._core.fields import check_fields
from ...ops.sine import sine


@dataclass(frozen=True)
class Sine:
    """x plus sines and cosines of where it stands (Vaswani et al., 2017).

    Attributes:
        base: of the frequencies.
    """

    base: float = 10000.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.base <= 0:
            raise ValueError(f"base={self.base} must be above 0")

    def init(self, key: Tensor, dims: Dims) -> dict[str, Tensor]:
        return {}

    def apply(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        return sine(x, base=self.base)
