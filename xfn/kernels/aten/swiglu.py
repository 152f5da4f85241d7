"""Between the products of a gated feed-forward, in plain torch.

With g and u the sums with their biases and d = keep / (1 − p) · dy:  dup = d silu(g), dgate = d u silu′(g).
"""

from collections.abc import Sequence

from torch import Tensor

from ..._core.activations import ACTIVATIONS
from ..._core.kinds import wide
from ..._core.philox import dropped
from .rows import Maybe, cotangent, fit
from .rows import supports as supports

Group = Sequence[Maybe]
SILU = ACTIVATIONS["silu"]


def forward(x: Group, c: Group, *, p: float) -> tuple[Tensor]:
    g, u = _moved(x)
    return (dropped(SILU.value(g) * u, c[0], p).to(x[0].dtype).contiguous(),)  # type: ignore[union-attr]


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float) -> list[Maybe]:
    g, u = _moved(x)
    d = dropped(cotangent(dy[0], y[0]).to(g.dtype), c[0], p)
    dgate, dup = d * u * SILU.slope(g), d * SILU.value(g)
    found = (dgate, dup, dgate.sum(-2), dup.sum(-2))
    return [fit(grad, t, need) for grad, t, need in zip(found, x, needs, strict=True)]


def _moved(x: Group) -> list[Tensor]:
    """Both operands, with their biases, in the dtype of sums."""
    wider = [t.to(wide(t.dtype)) for t in x[:2] if t is not None]
    return [t if b is None else t + b.unsqueeze(-2) for t, b in zip(wider, x[2:], strict=True)]
