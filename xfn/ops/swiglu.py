"""A gated feed-forward part.

    y = drop(down(drop(silu(gate x) ⊙ up x)))

What stands between the products is one pass, in float32, or float64 where that came in, and rounded once; dropout's
bits are those of :func:`xfn.dropout`.

Source: Shazeer, "GLU variants improve transformer" (2020).
"""

from typing import TypedDict

import torch
from torch import Tensor

from .. import random
from .._core.activations import silu
from .._core.case import Case, beside
from .._core.kinds import check_probability, wide
from .._core.params import taken, tree
from .._core.philox import dropped
from .._core.primitive import Lean
from .._core.shapes import Signature
from .fused_linear import fused_linear, product
from .linear import Linear, init_linear
from .mlp import children

SIGNATURE = Signature.parse(
    "x E, gate.weight F E, gate.bias? F, up.weight F E, up.bias? F, down.weight E F, down.bias? E -> y E"
)

GATED = Signature.parse("gate M F, up M F, gate_bias? F, up_bias? F ; key? 2 -> y M F")


class SwiGLU(TypedDict):
    """gate: E → F, up: E → F, down: F → E."""

    gate: Linear
    up: Linear
    down: Linear


def init_swiglu(
    key: Tensor, dim: int, hidden: int | None = None, bias: bool = True, *, dtype: torch.dtype = torch.float32
) -> SwiGLU:
    """Parameters of :func:`swiglu`, drawn as those of three linear maps.

    Args:
        key: what they are drawn with; they are on its device.
        dim: E.
        hidden: F; by default 8 E / 3, up to a multiple of 8, which is as many parameters as an :func:`xfn.mlp` has.
        bias: whether the maps have biases.
        dtype: of the parameters.

    Returns:
        ``{"gate": {"weight": [F, E], …}, "up": {"weight": [F, E], …}, "down": {"weight": [E, F], …}}``.

    Example:
        >>> init_swiglu(random.key(0), 12)["up"]["weight"].shape
        torch.Size([32, 12])
    """
    hidden = -(-dim // 3) * 8 if hidden is None else hidden
    gate, up, down = (random.fold_in(key, i) for i in range(3))
    return {
        "gate": init_linear(gate, dim, hidden, bias, dtype=dtype),
        "up": init_linear(up, dim, hidden, bias, dtype=dtype),
        "down": init_linear(down, hidden, dim, bias, dtype=dtype),
    }


def swiglu(
    params: SwiGLU, x: Tensor, p: float = 0.0, *, key: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """drop(down(drop(silu(gate x) ⊙ up x))).

    Args:
        params: ``{"gate": …, "up": …, "down": …}`` as :func:`init_swiglu` makes them; biases may be left out.
        x: ``[..., M, E]``, or one row ``[E]``.
        p: probability of dropping, both times.
        key: as of :func:`xfn.mlp`. Required when p > 0.
        backend: of what is behind the products, as in :func:`xfn.dropout`.

    Returns:
        ``[..., M, E]``.

    Raises:
        ShapeError, ValueError, TypeError: parameters or x are not of these names, shapes and dtypes.
        KeyRequired: p > 0 without a key.

    Example:
        >>> swiglu(init_swiglu(random.key(0), 3), torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    t, _, _ = taken("swiglu", SIGNATURE, params, {"x": x})
    p = check_probability(p)
    first, second = children(key, x, 2) if p and key is not None else (None, None)
    gate, up = (product(t["x"], t[f"{name}.weight"]) for name in ("gate", "up"))
    h = gated(gate, up, t.get("gate.bias"), t.get("up.bias"), p, first, backend)
    return fused_linear(h, t["down.weight"], p, t.get("down.bias"), key=second, backend=backend)


def gated(
    gate: Tensor, up: Tensor, gate_bias: Tensor | None, up_bias: Tensor | None, p: float = 0.0,
    key: Tensor | None = None, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """drop(silu(gate + gate_bias) ⊙ (up + up_bias)), of ``[..., M, F]`` or one row."""
    if gate.dim() == 1:
        return gated(gate.unsqueeze(0), up.unsqueeze(0), gate_bias, up_bias, p, key, backend).squeeze(0)
    if not p and backend is None:
        y = SWIGLU.swiftly(gate, up, gate_bias, up_bias)
        if y is not None:
            return y
    keys = None if key is None else random.spread(key, gate.shape[:-2])
    return SWIGLU.bind(gate, up, gate_bias, up_bias, keys, p=p, backend=backend)[0]


def between(
    gate: Tensor, up: Tensor, gate_bias: Tensor | None, up_bias: Tensor | None, key: Tensor | None, *, p: float
) -> tuple[Tensor]:
    """The specification of what stands between the products, in plain torch."""
    pairs = ((gate, gate_bias), (up, up_bias))
    g, u = (t.to(wide(t.dtype)) if b is None else t.to(wide(t.dtype)) + b.unsqueeze(-2) for t, b in pairs)
    return (dropped(silu(g) * u, key, p).to(gate.dtype),)


SWIGLU = Lean("swiglu", GATED, between, options=("p",), backends=("cpu", "triton", "aten"))


def reference(params: SwiGLU, x: Tensor, p: float, key: Tensor | None) -> Tensor:
    """The specification, in plain torch."""

    def mapped(layer: Linear, x: Tensor) -> Tensor:
        y = torch.einsum("...e,fe->...f", x, layer["weight"])
        return y + layer["bias"] if "bias" in layer else y

    def left(y: Tensor, i: int) -> Tensor:
        return y if key is None else dropped(y, children(key, x, 2)[i], p)

    h = left(silu(mapped(params["gate"], x)) * mapped(params["up"], x), 0)
    return left(mapped(params["down"], h), 1)


def _case(name: str, names: str, shapes: str, p: float = 0.0, tags: str = "", **sizes: int) -> Case:
    def call(x: Tensor, *rest: Tensor, backend: str | None = None) -> tuple[Tensor]:
        params, key = tree(dict(zip(names.split(), rest, strict=True))), beside(random.key(3), x) if p else None
        if backend == "reference":
            return (reference(params, x, p, key),)  # type: ignore[arg-type]
        return (swiglu(params, x, p, key=key, backend=backend),)  # type: ignore[arg-type]

    given = dict(zip(("x", *names.split()), shapes.split(","), strict=True))
    return Case(name, call, given, {"B": 2, "M": 3, "E": 4, "F": 5, **sizes}, frozenset(tags.split()))


WEIGHTS = "gate.weight up.weight down.weight"
CASES = (
    _case("plain", WEIGHTS, "B M E,F E,F E,E F", tags="compiled"),
    _case("biases", f"{WEIGHTS} gate.bias up.bias down.bias", "M E,F E,F E,E F,F,F,E", p=0.3, tags="compiled", F=17),
    _case("one bias", f"{WEIGHTS} up.bias", "B C M E,F E,F E,E F,F", p=0.5, C=3),
    _case("a row", WEIGHTS, "E,F E,F E,E F", tags="tiny", E=2, F=2),
    _case("no rows", WEIGHTS, "M E,F E,F E,E F", tags="empty", M=0),
)
