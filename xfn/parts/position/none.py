"""No positions."""

from dataclasses import dataclass

from torch import Tensor

from ..._core.dims import Dims


@dataclass(frozen=True)
class None_:
    """x as it is: what stands where is not told, or is told by the attention."""

    def init(self, key: Tensor, dims: Dims) -> dict[str, Tensor]:
        return {}

    def apply(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        return x
