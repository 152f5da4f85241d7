"""norm(α x + f(x)), with α and the gain of the weights from the number of layers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..._core.dims import Dims
from ..._core.fields import check_fields
from ...ops.residual import deepnorm
from .._norms import NORMS, Norm, check_norm


@dataclass(frozen=True)
class Deepnorm:
    """norm(α x + f(x)), for a thousand layers (Wang et al., "DeepNet", 2022).

    Attributes:
        norm: ``layer_norm``, ``rms_norm`` or ``skip``.
    """

    norm: Norm = "layer_norm"

    def __post_init__(self) -> None:
        check_fields(self)
        check_norm(self.norm)

    def init(self, key: Tensor, dims: Dims) -> dict[str, Tensor]:
        return NORMS[self.norm][0](key, dims.model)  # type: ignore[no-any-return]

    def apply(self, params: Any, x: Tensor, f: Callable[..., Tensor], alpha: float) -> Tensor:
        return deepnorm(f, alpha, NORMS[self.norm][1])(params, x)
