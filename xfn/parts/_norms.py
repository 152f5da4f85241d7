"""The normalisations that residual parts choose from, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from .._core.dims import Dims
from .._core.fields import check_fields
from ..ops.layer_norm import init_layer_norm, layer_norm
from ..ops.rms_norm import init_rms_norm, rms_norm

Norm = Literal["layer_norm", "rms_norm", "skip"]


def init_skip(key: Tensor, dim: int) -> dict[str, Tensor]:
    """No parameters."""
    return {}


def skip(params: Any, x: Tensor) -> Tensor:
    """x as it is."""
    return x


NORMS: dict[Norm, tuple[Callable[..., Any], Callable[..., Tensor]]] = {
    "layer_norm": (init_layer_norm, layer_norm),
    "rms_norm": (init_rms_norm, rms_norm),
    "skip": (init_skip, skip),
}


@dataclass(frozen=True)
class Normed:
    """What residual parts share: a normalisation, by its name, and its parameters."""

    norm: Norm = "layer_norm"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.norm not in NORMS:
            raise ValueError(f"no norm is called {self.norm!r}; there are {sorted(NORMS)}")

    def init(self, key: Tensor, dims: Dims) -> dict[str, Tensor]:
        return NORMS[self.norm][0](key, dims.model)  # type: ignore[no-any-return]

    @property
    def normal(self) -> Callable[..., Tensor]:
        """The function of parameters and x."""
        return NORMS[self.norm][1]
