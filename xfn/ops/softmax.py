"""Softmax of rows, behind a mask where there is one.

    y[n] = exp x[n] / Σ exp x        over the n that a row may see

What a row may not see, and what is −∞, is 0 and takes no gradient; a row that sees nothing is all 0. Sums are in
float32, or float64 where that came in; y is in x's dtype.
"""

from typing import Any

import torch
from torch import Tensor

from .. import bias as biases
from .._core.case import Case, beside
from .._core.kinds import check_kinds, check_tensors, wide
from .._core.primitive import Lean
from .._core.shapes import Signature
from ..bias import Bias

SIGNATURE = Signature.parse("x M N ; lo? M, hi? M -> y M N")


def softmax(x: Tensor, bias: Bias | Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """exp x / Σ exp x along the last dim, over what a row may see.

    Args:
        x: ``[..., N]``; with a bias ``[..., H, M, N]``, or ``[M, N]`` of one head.
        bias: a :class:`xfn.bias.Bias`, a floating tensor that is added, or a boolean one, True where a row may see.
        backend: ``"reference"``, ``"cpu"``, ``"triton"`` or ``"aten"``; by default the first that can.

    Returns:
        The shape and dtype of x; zeros for a row that sees nothing.

    Raises:
        ShapeError: the bias does not fit x.
        TypeError, ValueError: dtypes or devices do not fit.

    Example:
        >>> softmax(torch.zeros(2, 2), biases.causal())
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]])
    """
    return masked(SOFTMAX, x, bias, backend)


def masked(primitive: Lean, x: Tensor, bias: Bias | Tensor | None, backend: str | None) -> Tensor:
    """A softmax, or its logarithm, with the bias in its normal form."""
    if bias is None and backend is None and (y := primitive.swiftly(x)) is not None:
        return y
    check_tensors({"x": x})
    check_kinds({"x": x}, {})
    if bias is None and x.dim() > 1:
        return primitive.bind(x, None, None, backend=backend)[0]
    flat = x[(None,) * (2 + (bias is not None) - x.dim())] if x.dim() < 2 + (bias is not None) else x
    M, N = flat.shape[-2:]
    normal = Bias.of(bias).resolve(M, N, x.device)
    if normal.dense is not None or normal.slopes is not None:
        given = normal._replace(lo=None, hi=None)
        flat = torch.where(given.visible(M, N, x.device), given.added_to(flat), -torch.inf)
    bounds = [t if t is None or t.dim() == 1 else t.unsqueeze(-2) for t in (normal.lo, normal.hi)]
    SIGNATURE.check({"x": flat, "lo": bounds[0], "hi": bounds[1]})
    y = primitive.bind(flat, *bounds, backend=backend)[0]
    return y.reshape(y.shape[y.dim() - x.dim() :]) if x.dim() < flat.dim() else y


def reference(x: Tensor, lo: Tensor | None, hi: Tensor | None) -> tuple[Tensor]:
    """The specification, in plain torch."""
    sees, shifted, total = parts(x, lo, hi)
    return (torch.where(sees, shifted.exp() / total, 0).to(x.dtype),)


def parts(x: Tensor, lo: Tensor | None, hi: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What a row sees, x less the greatest of that, and the sum of its exponentials, or 1."""
    sees = seen(x, lo, hi)
    s = torch.where(sees, x.to(wide(x.dtype)), -torch.inf)
    top = s.detach().amax(-1, keepdim=True) if x.shape[-1] else s.new_zeros(1)
    shifted = torch.where(sees, x.to(wide(x.dtype)) - torch.where(top == -torch.inf, 0, top), 0)
    total = torch.where(sees, shifted.exp(), 0).sum(-1, keepdim=True)
    return sees, shifted, torch.where(total == 0, 1, total)


def seen(x: Tensor, lo: Tensor | None, hi: Tensor | None) -> Tensor:
    """Which numbers count."""
    n = torch.arange(x.shape[-1], device=x.device)
    sees = x != -torch.inf
    sees = sees if lo is None else sees & (n >= lo.unsqueeze(-1))
    return sees if hi is None else sees & (n < hi.unsqueeze(-1))


SOFTMAX = Lean("softmax", SIGNATURE, reference, backends=("cpu", "triton", "aten"))


def cases(f: Any) -> tuple[Case, ...]:
    """The cases of a softmax, and of its logarithm."""

    def _case(name: str, x: str, bias: Any = lambda: None, biased: str = "", tags: str = "", **sizes: int) -> Case:
        def call(x: Tensor, *rest: Tensor, backend: str | None = None) -> tuple[Tensor]:
            return (f(x, beside(bias(*rest), x), backend=backend),)

        shapes = {"x": x} | ({"bias": biased} if biased else {})
        return Case(name, call, shapes, {"B": 2, "H": 2, "M": 4, "N": 5, **sizes}, frozenset(tags.split()))

    return (
        _case("plain", "B M N", tags="compiled"),
        _case("a row", "N", tags="tiny", N=3),
        _case("causal", "M N", biases.causal, tags="tiny", M=3, N=3),
        _case("window", "B H M N", lambda: biases.local(1, 1), tags="compiled", N=17),
        _case("blind rows", "H M N", lambda: biases.local(0, 0), M=5, N=3),
        _case("segments of examples", "B H M N", lambda: biases.segments(torch.tensor([[1, 3], [2, 2]]))),
        _case("added", "B H M N", lambda b: biases.causal() + biases.dense(b), "H M N"),
        _case("alibi", "H M N", lambda: biases.alibi(torch.tensor([0.5, 0.25]))),
        _case("one number", "M N", N=1),
        _case("no rows", "M N", tags="empty", M=0),
        _case("no columns", "M N", tags="empty", N=0),
    )


CASES = cases(softmax)
