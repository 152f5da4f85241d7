"""What follows a product: a bias, an activation, dropout and a residual, in one pass.

    y = residual + keep / (1 − p) · activation(x + bias)

Everything is in float32, or float64 where that came in, and rounded once. keep(m, e) is a function of the key, m and
e alone: lane e % 8 of Philox-4x32-7 at the counter (e // 8, m, 0, 0), the same bits on every backend.

Source: Srivastava et al., "Dropout" (2014).
"""

from collections.abc import Callable

from torch import Tensor

from .. import random
from .._core.activations import ACTIVATIONS, ORDER, check_activation
from .._core.case import Case, beside
from .._core.errors import KeyRequired
from .._core.kinds import check_kinds, check_probability, check_tensors, wide
from .._core.philox import dropped
from .._core.primitive import Lean
from .._core.shapes import Signature

SIGNATURE = Signature.parse("x M E, bias? E, residual? M E ; key? 2 -> y M E")
Activate = str | Callable[[Tensor], Tensor]


def dropout(
    x: Tensor,
    p: float = 0.5,
    bias: Tensor | None = None,
    activation: Activate = "identity",
    residual: Tensor | None = None,
    *,
    key: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """residual + dropout(activation(x + bias)): each number is zero with probability p, or grows by 1 / (1 − p).

    Args:
        x: ``[..., M, E]``, or one row ``[E]``.
        p: probability of dropping, rounded to a multiple of 2⁻¹⁶. With p = 0 nothing is dropped.
        bias: ``[E]``, added first.
        activation: the name of one of :mod:`xfn.activations`, or a function of a tensor.
        residual: ``[..., M, E]``, added last.
        key: what is drawn with: one key ``[2]``, of which example i takes ``fold_in(key, i)``, or one per example
            ``[..., 2]``. Required when p > 0.
        backend: ``"reference"``, ``"cpu"``, ``"triton"`` or ``"aten"``; by default the first that can.

    Returns:
        ``[..., M, E]`` in x's dtype.

    Raises:
        ShapeError: shapes contradict each other.
        TypeError, ValueError: dtypes or devices differ, p is not in [0, 1), or no activation has that name.
        KeyRequired: p > 0 without a key.

    Examples:
        >>> import torch
        >>> dropout(torch.ones(1, 8), 0.5, key=random.key(0)).unique()
        tensor([0., 2.])
        >>> dropout(torch.tensor([[-1.0, 2.0]]), 0.0, torch.tensor([0.5, 0.5]), "relu", torch.ones(1, 2))
        tensor([[1.0000, 3.5000]])
    """
    absent = key is None and residual is None and backend is None and type(p) is float and p == 0
    if absent and type(activation) is str and ORDER.get(activation):
        y = DROPOUT.swiftly(x, bias, activation, ORDER[activation])
        if y is not None:
            return y
    tensors = {"x": x, "bias": bias, "residual": residual}
    given = {name: t for name, t in tensors.items() if t is not None}
    check_tensors(given)
    check_kinds(given, {"key": key})
    p = check_probability(p)
    check_key(p, key)
    if x.dim() == 1:
        row = None if residual is None else residual.unsqueeze(0)
        return dropout(x.unsqueeze(0), p, bias, activation, row, key=key, backend=backend).squeeze(0)
    _, batch = SIGNATURE.check(tensors)
    if not isinstance(activation, str):
        x, bias, activation = activation(x if bias is None else x + bias.unsqueeze(-2)), None, "identity"
    check_activation(activation)
    if not p and activation == "identity":
        x = x if bias is None else x + bias.unsqueeze(-2)
        return x if residual is None else x + residual
    keys = None if not p or key is None else random.spread(key, batch)
    return DROPOUT.bind(x, bias, residual, keys, p=p, activation=activation, backend=backend)[0]


def check_key(p: float, key: Tensor | None) -> None:
    """Dropping needs something to draw with."""
    if p and key is None:
        raise KeyRequired(f"p={p} drops numbers, which needs a key: pass key=random.key(seed)")


def reference(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, key: Tensor | None, *, p: float, activation: str
) -> tuple[Tensor]:
    """The specification, in plain torch."""
    y = x.to(wide(x.dtype))
    y = ACTIVATIONS[activation].value(y if bias is None else y + bias.unsqueeze(-2))
    y = dropped(y, key, p)
    return ((y if residual is None else y + residual).to(x.dtype),)


DROPOUT = Lean(
    "dropout", SIGNATURE, reference, options=("p", "str activation"), backends=("cpu", "triton", "aten"),
    unread=lambda _, *, p, activation: (0, 2) if activation == "identity" else (2,),
)  # fmt: skip


def _case(
    name: str, p: float = 0.0, activation: str = "identity", bias: str = "", residual: str = "",
    x: str = "B M E", tags: str = "", **sizes: int,
) -> Case:  # fmt: skip
    shapes = {name: dims for name, dims in {"x": x, "bias": bias, "residual": residual}.items() if dims}

    def call(*tensors: Tensor, backend: str | None = None) -> tuple[Tensor]:
        t = dict(zip(shapes, tensors, strict=True))
        key = beside(random.key(3), t["x"]) if p else None
        return (dropout(t["x"], p, t.get("bias"), activation, t.get("residual"), key=key, backend=backend),)

    return Case(name, call, shapes, {"B": 2, "M": 3, "E": 5, **sizes}, frozenset(tags.split()))


CASES = (
    _case("plain", 0.3, tags="tiny", x="M E", M=2, E=3),
    _case("everything", 0.3, "gelu", "E", "B M E", tags="tiny", B=1, M=2, E=2),
    _case("bias and residual", 0.0, "tanh", "E", "B M E"),
    _case("shared residual", 0.4, "identity", "E", "M E", tags="compiled", E=17),
    _case("one row", 0.4, "silu", "E", x="E", E=9),
    _case("two batches", 0.5, "silu", "E", x="B C M E", C=3),
    *(_case(name, 0.0, name, "E", tags="compiled") for name in ACTIVATIONS if name != "identity"),
    _case("no rows", 0.3, "relu", "E", tags="empty", M=0),
    _case("no features", 0.3, "relu", "E", tags="empty", E=0),
)
