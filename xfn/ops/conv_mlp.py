"""A feed-forward part that looks at neighbours on a grid.

    y = drop(down(activation(mix(up x))))        mix: each feature's own 3 × 3 convolution, zeros around the grid

Source: Li, Xie et al., "LocalViT" (2021); Wang et al., "PVT v2" (2021).
"""

import math
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from .. import random
from .._core.activations import ACTIVATIONS
from .._core.case import Case
from .._core.params import taken, tree
from .._core.shapes import Signature
from ._grid import each, placed
from ._init import zeros
from .dropout import Activate, dropout
from .fused_linear import affine, fused_linear
from .linear import Linear

SIGNATURE = Signature.parse(
    "x M E, up.weight F E, up.bias? F, mix.weight F 3 3, mix.bias? F, down.weight O F, down.bias? O -> y M O"
)


class Mix(TypedDict):
    """weight ``[F, 3, 3]``, bias ``[F]``."""

    weight: Tensor
    bias: NotRequired[Tensor]


class ConvMLP(TypedDict):
    """up: E → F, mix: on the grid, down: F → O."""

    up: Linear
    mix: Mix
    down: Linear


def init_conv_mlp(
    key: Tensor, dim: int, hidden: int | None = None, out: int | None = None, bias: bool = True, *,
    dtype: torch.dtype = torch.float32,
) -> ConvMLP:  # fmt: skip
    """Parameters of :func:`conv_mlp`: weights normal with variance 2 / fan out, biases 0 (He et al., 2015).

    Args:
        key: what they are drawn with; they are on its device.
        dim: E.
        hidden: F; by default E.
        out: O; by default E.
        bias: whether the maps have biases.
        dtype: of the parameters.

    Returns:
        ``{"up": {"weight": [F, E], …}, "mix": {"weight": [F, 3, 3], …}, "down": {"weight": [O, F], …}}``.

    Example:
        >>> init_conv_mlp(random.key(0), 4)["mix"]["weight"].shape
        torch.Size([4, 3, 3])
    """
    hidden, out = (dim if size is None else size for size in (hidden, out))
    params: dict[str, dict[str, Tensor]] = {}
    shapes = {"up": ((hidden, dim), hidden), "mix": ((hidden, 3, 3), 9), "down": ((out, hidden), out)}
    for i, (name, (shape, fan)) in enumerate(shapes.items()):
        params[name] = {"weight": random.normal(random.fold_in(key, i), shape, dtype=dtype) * math.sqrt(2 / fan)}
        if bias:
            params[name]["bias"] = zeros(key, shape[0], dtype=dtype)
    return params  # type: ignore[return-value]


def conv_mlp(
    params: ConvMLP, x: Tensor, activation: Activate = "gelu", p: float = 0.0, *,
    grid: tuple[int, int] | None = None, key: Tensor | None = None, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """drop(down(activation(mix(up x)))), over tokens that lie on a grid, row by row.

    Args:
        params: ``{"up": …, "mix": …, "down": …}`` as :func:`init_conv_mlp` makes them; biases may be left out.
        x: ``[..., M, E]``.
        activation: the name of one of :mod:`xfn.activations`, or a function.
        p: probability of dropping from the result.
        grid: rows and columns, whose product is M; by default √M × √M.
        key: as of :func:`xfn.dropout`. Required when p > 0.
        backend: of what is behind the last product, as in :func:`xfn.dropout`.

    Returns:
        ``[..., M, O]``.

    Raises:
        ShapeError: the grid has not M places, or M is no square and there is none.
        ValueError, TypeError: parameters or x are not of these names, shapes and dtypes.
        KeyRequired: p > 0 without a key.

    Example:
        >>> conv_mlp(init_conv_mlp(random.key(0), 4), torch.ones(2, 6, 4), grid=(2, 3)).shape
        torch.Size([2, 6, 4])
    """
    t, sizes, _ = taken("conv_mlp", SIGNATURE, params, {"x": x})
    grid = placed(sizes["M"], grid)
    h = affine(t["x"], t["up.weight"], t.get("up.bias"))
    h = dropout(each(h, t["mix.weight"], t.get("mix.bias"), grid), 0.0, None, activation)
    return fused_linear(h, t["down.weight"], p, t.get("down.bias"), key=key, backend=backend)


def reference(params: ConvMLP, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The specification, in plain torch."""
    up, mix, down = params["up"], params["mix"], params["down"]
    h = torch.einsum("...me,fe->...mf", x, up["weight"]) + up["bias"]
    padded = torch.nn.functional.pad(h.unflatten(-2, grid), (0, 0, 1, 1, 1, 1))
    near = [
        [padded[..., i : i + grid[0], j : j + grid[1], :] * mix["weight"][:, i, j] for j in range(3)] for i in range(3)
    ]
    h = ACTIVATIONS["gelu"].value(sum(map(sum, near)) + mix["bias"]).flatten(-3, -2)
    return torch.einsum("...mf,of->...mo", h, down["weight"]) + down["bias"]


def _case(name: str, grid: tuple[int, int], tags: str = "", **sizes: int) -> Case:
    names = [f"{layer}.{part}" for layer in ("up", "mix", "down") for part in ("weight", "bias")]

    def call(x: Tensor, *rest: Tensor, backend: str | None = None) -> tuple[Tensor]:
        params = tree(dict(zip(names, rest, strict=True)))
        if backend == "reference":
            return (reference(params, x, grid),)  # type: ignore[arg-type]
        return (conv_mlp(params, x, grid=grid, backend=backend),)  # type: ignore[arg-type]

    given = dict(zip(("x", *names), ("B M E", "F E", "F", "F 3 3", "F", "O F", "O"), strict=True))
    usual = {"B": 2, "M": grid[0] * grid[1], "E": 3, "F": 4, "O": 2}
    return Case(name, call, given, usual | sizes, frozenset(tags.split()))


CASES = (_case("square", (3, 3)), _case("oblong", (2, 4)), _case("a line", (1, 2), "tiny", B=1, E=1, F=1, O=1))
