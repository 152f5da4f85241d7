"""The logarithm of softmax.

    y[n] = x[n] − log Σ exp x        over the n that a row may see

What a row may not see is −∞ and takes no gradient. Sums are in float32, or float64 where that came in.
"""

import torch
from torch import Tensor

from .._core.primitive import Lean
from ..bias import Bias
from .softmax import SIGNATURE, cases, masked, parts


def log_softmax(x: Tensor, bias: Bias | Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """x − log Σ exp x along the last dim, over what a row may see.

    Args:
        x: ``[..., N]``; with a bias ``[..., H, M, N]``, or ``[M, N]`` of one head.
        bias: a :class:`xfn.bias.Bias`, a floating tensor that is added, or a boolean one, True where a row may see.
        backend: ``"reference"``, ``"cpu"``, ``"triton"`` or ``"aten"``; by default the first that can.

    Returns:
        The shape and dtype of x; −∞ where a row may not see.

    Raises:
        ShapeError: the bias does not fit x.
        TypeError, ValueError: dtypes or devices do not fit.

    Example:
        >>> from xfn import bias
        >>> log_softmax(torch.zeros(2, 2), bias.causal())
        tensor([[ 0.0000,    -inf],
                [-0.6931, -0.6931]])
    """
    return masked(LOG_SOFTMAX, x, bias, backend)


def reference(x: Tensor, lo: Tensor | None, hi: Tensor | None) -> tuple[Tensor]:
    """The specification, in plain torch."""
    sees, shifted, total = parts(x, lo, hi)
    return (torch.where(sees, shifted - total.log(), -torch.inf).to(x.dtype),)


LOG_SOFTMAX = Lean("log_softmax", SIGNATURE, reference, backends=("cpu", "triton", "aten"))
CASES = cases(log_softmax)
