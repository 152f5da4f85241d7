"""Root mean square normalisation in plain torch.

With n = x r, r = 1 / √(mean x² + ε) and g = dy · weight:  dx = r (g − n mean(g n)).
"""

from collections.abc import Sequence

from torch import Tensor

from ..._core.kinds import wide
from .rows import Maybe, cotangent, fit
from .rows import supports as supports

Group = Sequence[Maybe]


def forward(x: Group, c: Group, *, eps: float) -> tuple[Tensor]:
    given, weight = x
    assert given is not None
    n, _ = _normal(given, eps)
    return ((n if weight is None else n * weight).to(given.dtype).contiguous(),)


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, eps: float) -> list[Maybe]:
    given, weight = x
    assert given is not None
    n, r = _normal(given, eps)
    d = cotangent(dy[0], y[0]).to(n.dtype)
    g = d if weight is None else d * weight
    return [fit(r * (g - n * (g * n).mean(-1, keepdim=True)), given, needs[0]), fit(d * n, weight, needs[1])]


def _normal(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    n = x.to(wide(x.dtype))
    r = (n.square().mean(-1, keepdim=True) + eps).rsqrt()
    return n * r, r
