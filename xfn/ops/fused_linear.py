"""A product and what follows it, in one pass over its result.

    y = residual + keep / (1 − p) · activation(x Wᵀ + b)

Everything is summed in float32, or float64 where that came in, and rounded once. What is dropped is what
:func:`xfn.dropout` drops. A gradient needs x Wᵀ + b, which one pass does not keep, so that only calls which nobody
differentiates take it.
"""

from typing import Any

import torch
from torch import Tensor

from .. import random
from .._core.activations import check_activation
from .._core.case import Case, beside
from .._core.dispatch import OVERRIDE, Call, objections, swift
from .._core.kinds import wide
from .._core.levels import TENSORS, overt, plain, records
from .._core.primitive import Lean
from .._core.shapes import Signature
from .dropout import Activate, check_key, dropout
from .dropout import reference as followed

SIGNATURE = Signature.parse("x M E, weight F E, bias? F, residual? M F ; key? 2 -> y M F")


def fused_linear(
    x: Tensor,
    weight: Tensor,
    p: float = 0.0,
    bias: Tensor | None = None,
    activation: Activate = "identity",
    residual: Tensor | None = None,
    *,
    key: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """residual + dropout(activation(x Wᵀ + bias)), of operands that were checked: by torch's product and
    :func:`xfn.dropout`, or where ``at_once`` finds a kernel for both, by that."""
    if activation == "identity" and not p and residual is None:
        return affine(x, weight, bias)
    named = backend or OVERRIDE
    if named == "triton" or (named is None and x.is_cuda):
        y = at_once((x, weight, bias, residual), p, activation, key, named)
        if y is not None:
            return y
    return dropout(product(x, weight), p, bias, activation, residual, key=key, backend=backend)


def at_once(
    given: tuple[Tensor | None, ...], p: float, activation: Activate, key: Tensor | None, named: str | None
) -> Tensor | None:
    """All of it in one kernel; None: it is no more than a map, somebody differentiates, or others are better at it."""
    x, _, _, residual = given
    assert x is not None
    follows = p or residual is not None or activation != "identity"
    if not follows or x.dim() < 2 or not isinstance(activation, str) or not plain(given, cast=True) or records(given):
        return None
    check_key(p, key)
    names = FUSED_LINEAR.forward.names
    _, batch = SIGNATURE.check(dict(zip(names, given, strict=False)))
    tensors = (*given, random.spread(key, batch) if p and key is not None else None)
    options: dict[str, Any] = {"p": p, "activation": check_activation(activation)}
    call = Call(FUSED_LINEAR.name, "forward", dict(zip(names, tensors, strict=True)), options)
    if objections("triton", call, named is not None):
        return None
    return FUSED_LINEAR.bind(*tensors, **options, backend="triton")[0]


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b, by torch where it can: its own map knows no symbolic sizes, and of one row see :func:`product`."""
    y = swiftly(x, weight, bias)
    if y is not None:
        return y
    if x.dim() > 1 and not torch.compiler.is_compiling():
        return torch.nn.functional.linear(x, weight, bias)
    return dropout(product(x, weight), 0.0, bias)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ. One row is taken for a matrix, for torch gives a batch of tangents of its own product a dim too many."""
    y = swiftly(x, weight)
    if y is not None:
        return y
    return x @ weight.mT if x.dim() > 1 else (x.unsqueeze(0) @ weight.mT).squeeze(0)


def swiftly(x: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> Tensor | None:
    """x Wᵀ + b of rows, in a call that nothing looks at; else None."""
    if type(x) not in TENSORS or weight is None or not overt((x, weight, bias)) or not x.is_cpu:
        return None
    return None if (taken := swift("cpu", "linear")) is None else taken(x, weight, bias)


def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, key: Tensor | None, *,
    p: float, activation: str,
) -> tuple[Tensor]:  # fmt: skip
    """The specification, in plain torch."""
    kind = wide(x.dtype)
    (y,) = followed(x.to(kind) @ weight.to(kind).mT, bias, residual, key, p=p, activation=activation)
    return (y.to(x.dtype),)


FUSED_LINEAR = Lean("fused_linear", SIGNATURE, reference, options=("p", "str activation"), backends=("triton", "aten"))


def _case(
    name: str, p: float = 0.0, activation: str = "identity", bias: str = "", residual: str = "",
    x: str = "B M E", weight: str = "F E", tags: str = "", **sizes: int,
) -> Case:  # fmt: skip
    every = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    shapes = {name: dims for name, dims in every.items() if dims}

    def call(*tensors: Tensor, backend: str | None = None) -> tuple[Tensor, ...]:
        t = dict(zip(shapes, tensors, strict=True))
        _, batch = SIGNATURE.check(t)
        key = random.spread(beside(random.key(3), t["x"]), batch) if p else None
        given = (t["x"], t["weight"], t.get("bias"), t.get("residual"), key)
        return FUSED_LINEAR.bind(*given, p=p, activation=activation, backend=backend)

    return Case(name, call, shapes, {"B": 2, "M": 3, "E": 4, "F": 5, **sizes}, frozenset(tags.split()))


CASES = (
    _case("activation", activation="silu", bias="F", tags="tiny", x="M E", M=1, E=2, F=2),
    _case("everything", 0.3, "gelu", "F", "B M F", tags="compiled", M=9, E=17, F=19),
    _case("shared residual", 0.4, "relu", residual="M F", x="B C M E", C=3, F=9),
    _case("weights of each", activation="tanh", bias="B F", weight="B F E"),
    _case("no rows", 0.3, "relu", "F", tags="empty", M=0),
    _case("no features", 0.0, "relu", "F", tags="empty", E=0),
)
