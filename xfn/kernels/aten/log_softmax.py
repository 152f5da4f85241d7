"""The logarithm of softmax in plain torch:  dx = dy − exp(y) Σ dy, over what a row may see."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._core.kinds import wide
from .rows import Maybe, cotangent, fit
from .rows import supports as supports
from .softmax import hidden

Group = Sequence[Maybe]


def forward(x: Group, c: Group) -> tuple[Tensor]:
    logits, some = hidden(x, c)
    return (torch.where(some, logits.log_softmax(-1), -torch.inf).to(x[0].dtype).contiguous(),)  # type: ignore[union-attr]


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool]) -> list[Maybe]:
    assert y[0] is not None
    out, d = (t.to(wide(y[0].dtype)) for t in (y[0], cotangent(dy[0], y[0])))
    d = torch.where(hidden(x, c)[0] == -torch.inf, 0, d)  # not where y is: that may have overflowed
    return [fit(d - out.exp() * d.sum(-1, keepdim=True), x[0], needs[0])]
