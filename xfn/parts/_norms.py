"""The normalisations that residual parts choose from, by name."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

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


def check_norm(name: str) -> None:
    """A normalisation that there is."""
    if name not in NORMS:
        raise ValueError(f"no norm is called {name!r}; there are {sorted(NORMS)}")
