"""Every query attends to the keys near it."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..._core.dims import Dims
from ..._core.fields import check_fields
from ..._core.kinds import check_probability
from ..._core.terms import Corner
from ...bias import Bias
from ...ops.attention import attention
from .._fields import Drops, drawing


@dataclass(frozen=True)
class Local(Drops):
    """softmax(scale · q kᵀ + bias) v over a window of keys, at the cost of the window.

    Attributes:
        window: how many keys a query sees, its own among them: its own in their middle, so an odd number; or when
            ``causal`` its own and the window − 1 before it. A causal bias takes the future from a centred window.
        causal: whether the window lies in the past.
        p: probability of dropping a weight in training.
        scale: factor of q kᵀ; by default K ** -0.5.
        corner: where the diagonal starts when there are not as many queries as keys, as in :func:`xfn.bias.causal`.

    Example:
        >>> from xfn import random
        >>> q, k, v = random.normal(random.key(0), (3, 10, 2, 4))
        >>> Local(window=3).apply({}, q, k, v).shape
        torch.Size([10, 2, 4])

    Source: Beltagy, Peters and Cohan, "Longformer: the long-document transformer" (2020).
    """

    window: int = 5
    causal: bool = False
    p: float = 0.0
    scale: float | None = None
    corner: Corner = "top-left"

    def __post_init__(self) -> None:
        check_fields(self)
        check_probability(self.p)
        if self.window < 1 or not (self.causal or self.window % 2):
            raise ValueError(f"window={self.window} has no middle: it must be odd, or write causal=True")
        self.seen(Bias(()))

    def init(self, key: Tensor, dims: Dims) -> dict[str, Any]:
        return {}

    def seen(self, bias: Bias) -> Bias:
        """A bias, less what is far; within each segment when there are segments."""
        left, right = (self.window - 1, 0) if self.causal else (self.window // 2, self.window // 2)
        return bias.local(left, right, self.corner)

    def apply(
        self, params: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, bias: Bias | Tensor | None = None, *,
        key: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        p, key = drawing(self.p, key)
        return attention(q, k, v, self.seen(Bias.of(bias)), p, self.scale, key=key)
