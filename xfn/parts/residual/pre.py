"""x + f(norm x), and a norm behind the last layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..._core.dims import Dims
from ..._core.fields import check_fields
from ...ops.residual import pre
from .._norms import NORMS, Norm, check_norm


@dataclass(frozen=True)
class Pre:
    """x + f(norm x): the stream is normalised before each layer, and once more at the end (Xiong et al., 2020).

    Attributes:
        norm: ``layer_norm``, ``rms_norm`` or ``skip``.
    """

    norm: Norm = "layer_norm"

    def __post_init__(self) -> None:
        check_fields(self)
        check_norm(self.norm)

    def init(self, key: Tensor, dims: Dims) -> dict[str, Tensor]:
        return NORMS[self.norm][0](key, dims.model)  # type: ignore[no-any-return]

    def apply(self, params: Any, x: Tensor, f: Callable[..., Tensor]) -> Tensor:
        return pre(f, NORMS[self.norm][1])(params, x)

    def branch(self, params: Any, x: Tensor, f: Callable[..., Tensor]) -> Tensor:
        """What is added to x."""
        return f(params["f"], NORMS[self.norm][1](params["norm"], x))

    def last(self, params: Any, x: Tensor) -> Tensor:
        """What comes behind the last layer."""
        return NORMS[self.norm][1](params, x)
