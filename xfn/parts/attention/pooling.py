"""Each place of an image takes the mean of its neighbours."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._core.dims import Dims
from ..._core.fields import check_fields
from ..._core.kinds import is_integer
from ...ops._grid import on_images


@dataclass(frozen=True)
class Pooling:
    """mean(x near by) − x, where what lies outside the image does not count.

    Attributes:
        size: rows and columns of the neighbourhood; oneself in its middle, so an odd number.

    Example:
        >>> Pooling().apply({}, torch.eye(4)[:, :1], grid=(1, 4)).flatten()
        tensor([-0.5000,  0.3333,  0.0000,  0.0000])

    Source: Yu et al., "MetaFormer is actually what you need for vision" (2022).
    """

    size: int = 3

    def __post_init__(self) -> None:
        check_fields(self)
        if not is_integer(self.size) or self.size < 1 or self.size % 2 == 0:
            raise ValueError(f"size={self.size} has no middle: it must be an odd number of places")

    def init(self, key: Tensor, dims: Dims) -> dict[str, Any]:
        return {}

    def apply(self, params: dict[str, Any], x: Tensor, *, grid: tuple[int, int] | None = None) -> Tensor:
        mean = lambda planes: torch.nn.functional.avg_pool2d(
            planes, self.size, 1, self.size // 2, count_include_pad=False
        )
        return on_images(mean, x, grid) - x
