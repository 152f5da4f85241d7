"""norm(x + f(x))."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...ops.residual import post
from .._norms import Normed


@dataclass(frozen=True)
class Post(Normed):
    """norm(x + f(x)): the stream is normalised behind each layer (Vaswani et al., 2017).

    Attributes:
        norm: ``layer_norm``, ``rms_norm`` or ``skip``.
    """

    def apply(self, params: Any, x: Tensor, f: Callable[..., Tensor]) -> Tensor:
        return post(f, self.normal)(params, x)

    def branch(self, params: Any, x: Tensor, f: Callable[..., Tensor]) -> Tensor:
        """What is added to x where it passes by untouched, as in a reversible stack."""
        return self.normal(params["norm"], f(params["f"], x))
