"""norm(x + f(x))."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..._core.dims import Dims
from ..._core.fields import check_fields
from ...ops.residual import post
from .._norms import NORMS, Norm, check_norm


@dataclass(frozen=True)
class Post:
    """norm(x + f(x)): the stream is normalised behind each layer (Vaswani et al., 2017).

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
        return post(f, NORMS[self.norm][1])(params, x)

    def branch(self, params: Any, x: Tensor, f: Callable[..., Tensor]) -> Tensor:
        """What is added to x where it passes by untouched, as in a reversible stack."""
        return NORMS[self.norm][1](params["norm"], f(params["f"], x))
