"""norm(α x + f(x)), with α and the gain of the weights from the number of layers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...ops.residual import deepnorm
from .._norms import Normed


@dataclass(frozen=True)
class Deepnorm(Normed):
    """norm(α x + f(x)), for a thousand layers (Wang et al., "DeepNet", 2022).

    Attributes:
        norm: ``layer_norm``, ``rms_norm`` or ``skip``.
    """

    def apply(self, params: Any, x: Tensor, f: Callable[..., Tensor], alpha: float) -> Tensor:
        return deepnorm(f, alpha, self.normal)(params, x)
