"""The feed-forward part of a transformer's layer.

    y = drop(down(drop(activation(up x))))

Source: Vaswani et al., "Attention is all you need" (2017).
"""

from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor

from .. import random
from .._core.activations import ACTIVATIONS
from .._core.case import Case, beside
from .._core.kinds import check_probability
from .._core.params import taken, tree
from .._core.philox import dropped
from .._core.shapes import Signature
from .fused_linear import fused_linear
from .linear import Linear, init_linear

SIGNATURE = Signature.parse("x E, up.weight F E, up.bias? F, down.weight E F, down.bias? E -> y E")


class MLP(TypedDict):
    """up: E → F, down: F → E."""

    up: Linear
    down: Linear


def init_mlp(
    key: Tensor, dim: int, hidden: int | None = None, bias: bool = True, *, dtype: torch.dtype = torch.float32
) -> MLP:
    """Parameters of :func:`mlp`, drawn as those of two linear maps.

    Args:
        key: what they are drawn with; they are on its device.
        dim: E.
        hidden: F; by default 4 E.
        bias: whether the maps have biases.
        dtype: of the parameters.

    Returns:
        ``{"up": {"weight": [F, E], "bias": [F]}, "down": {"weight": [E, F], "bias": [E]}}``.

    Example:
        >>> init_mlp(random.key(0), 3)["up"]["weight"].shape
        torch.Size([12, 3])
    """
    hidden = 4 * dim if hidden is None else hidden
    up, down = random.fold_in(key, 0), random.fold_in(key, 1)
    return {
        "up": init_linear(up, dim, hidden, bias, dtype=dtype),
        "down": init_linear(down, hidden, dim, bias, dtype=dtype),
    }


def mlp(
    params: MLP,
    x: Tensor,
    activation: str | Callable[[Tensor], Tensor] = "gelu",
    p: float = 0.0,
    *,
    key: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """drop(down(drop(activation(up x)))), with everything behind a product in one pass.

    Args:
        params: ``{"up": {"weight": [F, E], "bias": [F]}, "down": {"weight": [E, F], "bias": [E]}}``, of which the
            biases may be left out.
        x: ``[..., M, E]``, or one row ``[E]``.
        activation: the name of one of :mod:`xfn.activations`, or a function.
        p: probability of dropping, both times.
        key: what is drawn with: one key ``[2]``, of which example i takes ``fold_in(key, i)``, or one per example
            ``[..., 2]``. The two droppings take children 0 and 1 of it. Required when p > 0.
        backend: of what is behind the products, as in :func:`xfn.dropout`.

    Returns:
        ``[..., M, E]``.

    Raises:
        ShapeError, ValueError, TypeError: parameters or x are not of these names, shapes and dtypes.
        KeyRequired: p > 0 without a key.

    Example:
        >>> params = init_mlp(random.key(0), 3)
        >>> mlp(params, torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    t, _, _ = taken("mlp", SIGNATURE, params, {"x": x})
    p = check_probability(p)
    first, second = children(key, x, 2) if p and key is not None else (None, None)
    h = fused_linear(t["x"], t["up.weight"], p, t.get("up.bias"), activation, key=first, backend=backend)
    return fused_linear(h, t["down.weight"], p, t.get("down.bias"), key=second, backend=backend)


init_fused_mlp, fused_mlp = init_mlp, mlp
"""The names under which the seeds have the same numbers from fused kernels; here there is no other way."""


def children(key: Tensor, x: Tensor, n: int) -> tuple[Tensor, ...]:
    """n keys for each example of ``x [..., M, E]``: its key's children."""
    each = random.spread(key, x.shape[:-2]).unsqueeze(-2)
    return random.fold_in(each, torch.arange(n, device=key.device)).unbind(-2)


def reference(params: MLP, x: Tensor, activation: str, p: float, key: Tensor | None) -> Tensor:
    """The specification, in plain torch."""
    for i, name in enumerate(("up", "down")):
        layer: Linear = params[name]  # type: ignore[literal-required]
        x = torch.einsum("...e,fe->...f", x, layer["weight"])
        x = x + layer["bias"] if "bias" in layer else x
        x = ACTIVATIONS[activation].value(x) if name == "up" else x
        x = x if key is None else dropped(x, children(key, x, 2)[i], p)
    return x


def _case(
    name: str, names: str, shapes: str, activation: str = "gelu", p: float = 0.0, tags: str = "", **sizes: int
) -> Case:
    def call(x: Tensor, *rest: Tensor, backend: str | None = None) -> tuple[Tensor]:
        params, key = tree(dict(zip(names.split(), rest, strict=True))), beside(random.key(3), x) if p else None
        if backend == "reference":
            return (reference(params, x, activation, p, key),)  # type: ignore[arg-type]
        return (mlp(params, x, activation, p, key=key, backend=backend),)  # type: ignore[arg-type]

    given = dict(zip(("x", *names.split()), shapes.split(","), strict=True))
    return Case(name, call, given, {"B": 2, "M": 3, "E": 4, "F": 5, **sizes}, frozenset(tags.split()))


BOTH = "up.weight up.bias down.weight down.bias"
CASES = (
    _case("plain", BOTH, "B M E,F E,F,E F,E"),
    _case("dropout", BOTH, "B M E,F E,F,E F,E", p=0.3),
    _case("no biases", "up.weight down.weight", "M E,F E,E F", "relu"),
    _case("a row", BOTH, "E,F E,F,E F,E", "silu", tags="tiny", E=2, F=2),
    _case("no rows", BOTH, "M E,F E,F,E F,E", tags="empty", M=0),
)
