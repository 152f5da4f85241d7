"""A vector for every place, and perhaps a token before all others."""

from dataclasses import dataclass

from torch import Tensor

from ..._core.dims import Dims
from ..._core.fields import check_fields
from ...ops import learned as op


@dataclass(frozen=True)
class Learned:
    """x plus a vector for every place; a sequence shorter than Dims.length takes the first ones.

    Attributes:
        token: whether one more token, which is learned, is put before all others, as a place for a class.
    """

    token: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: Tensor, dims: Dims) -> op.Learned:
        return op.init_learned(key, dims.needs("length", "Learned"), dims.model, self.token)

    def apply(self, params: op.Learned, x: Tensor) -> Tensor:
        return op.learned({**params, "position": params["position"][: x.shape[-2] + self.token]}, x)
