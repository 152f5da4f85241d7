"""Layer normalisation in plain torch.

With n = (x − mean) r, r = 1 / √(var + ε) and g = dy · weight:  dx = r (g − mean g − n mean(g n)).
"""

from collections.abc import Sequence

from torch import Tensor

from ..._core.kinds import wide
from .rows import Maybe, cotangent, fit
from .rows import supports as supports

Group = Sequence[Maybe]


def forward(x: Group, c: Group, *, eps: float) -> tuple[Tensor]:
    given, weight, bias = x
    assert given is not None
    y, _ = _normal(given, eps)
    y = y if weight is None else y * weight
    return ((y if bias is None else y + bias).to(given.dtype).contiguous(),)


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, eps: float) -> list[Maybe]:
    given, weight, bias = x
    assert given is not None
    n, r = _normal(given, eps)
    d = cotangent(dy[0], y[0]).to(n.dtype)
    g = d if weight is None else d * weight
    dx = r * (g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True))
    return [fit(dx, given, needs[0]), fit(d * n, weight, needs[1]), fit(d.clone(), bias, needs[2])]


def _normal(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    n = x.to(wide(x.dtype))
    n = n - n.mean(-1, keepdim=True)
    r = (n.square().mean(-1, keepdim=True) + eps).rsqrt()
    return n * r, r
