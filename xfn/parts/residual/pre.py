"""x + f(norm x), and a norm behind the last layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...ops.residual import pre
from .._norms import Normed


@dataclass(frozen=True)
class Pre(Normed):
    """x + f(norm x): the stream is normalised before each layer, and once more at the end (Xiong et al., 2020).

    Attributes:
        norm: ``layer_norm``, ``rms_norm`` or ``skip``.
    """

    def apply(self, params: Any, x: Tensor, f: Callable[..., Tensor]) -> Tensor:
        return pre(f, self.normal)(params, x)

    def branch(self, params: Any, x: Tensor, f: Callable[..., Tensor]) -> Tensor:
        """What is added to x."""
        return f(params["f"], self.normal(params["norm"], x))

    def last(self, params: Any, x: Tensor) -> Tensor:
        """What comes behind the last layer."""
        return self.normal(params, x)
