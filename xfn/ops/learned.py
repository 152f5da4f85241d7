"""Positions that are learned, and a token that stands before all others.

y = position + x                    y = position + [token, x]
"""

from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from .._core.case import Case
from .._core.errors import ShapeError
from .._core.params import taken, tree
from .._core.shapes import Signature
from ._init import normal, zeros
from .embedding import STD

SIGNATURE = Signature.parse("x M E, position T E, token? E -> y T E")


class Learned(TypedDict):
    """position ``[T, E]``, token ``[E]``, which may be left out."""

    position: Tensor
    token: NotRequired[Tensor]


def init_learned(
    key: Tensor, length: int, dim: int, token: bool = False, std: float = STD, *, dtype: torch.dtype = torch.float32
) -> Learned:
    """Parameters of :func:`learned`: normal positions, and a token of zeros.

    Args:
        key: what they are drawn with; they are on its device.
        length: M, how many tokens x has.
        dim: E.
        token: whether one more is to stand before them, for which there is a position too.
        std: standard deviation of the positions.
        dtype: of the parameters.

    Returns:
        ``{"position": [T, E], "token": [E]}``, with T = M, or M + 1 where there is a token.

    Example:
        >>> from xfn import random
        >>> {name: list(t.shape) for name, t in init_learned(random.key(0), 16, 8, token=True).items()}
        {'position': [17, 8], 'token': [8]}
    """
    if not token:
        return {"position": normal(key, length, dim, std=std, dtype=dtype)}
    return {"position": normal(key, length + 1, dim, std=std, dtype=dtype), "token": zeros(key, dim, dtype=dtype)}


def learned(params: Learned, x: Tensor) -> Tensor:
    """position + x, with the token put before x where there is one.

    Args:
        params: ``{"position": [T, E], "token": [E]}``, of which the token may be left out.
        x: ``[..., M, E]`` with M = T, or T − 1 where there is a token.

    Returns:
        ``[..., T, E]``.

    Raises:
        ShapeError, ValueError, TypeError: parameters or x are not of these names, shapes and dtypes.

    Example:
        >>> learned({"position": torch.tensor([[1.0], [2.0]]), "token": torch.tensor([5.0])}, torch.zeros(1, 1))
        tensor([[6.],
                [2.]])
    """
    t, sizes, _ = taken("learned", SIGNATURE, params, {"x": x})
    if sizes["M"] + ("token" in t) != sizes["T"]:
        before = " and one before them" if "token" in t else ""
        raise ShapeError(f"position [T, E] has T={sizes['T']}, but x [..., M, E] has M={sizes['M']} tokens{before}")
    x, position, pad = t["x"], t["position"], torch.nn.functional.pad
    if "token" in t:
        x, position = pad(x, (0, 0, 1, 0)), position + pad(t["token"].unsqueeze(0), (0, 0, 0, sizes["M"]))
    y: Tensor = x + position
    return y


def reference(params: Learned, x: Tensor) -> Tensor:
    """The specification, in plain torch."""
    if "token" not in params:
        return x + params["position"]
    return torch.cat([params["token"].expand(*x.shape[:-2], 1, -1), x], -2) + params["position"]


def _case(name: str, names: str, shapes: str, tags: str = "", **sizes: int) -> Case:
    def call(x: Tensor, *rest: Tensor, backend: str | None = None) -> tuple[Tensor]:
        params = tree(dict(zip(names.split(), rest, strict=True)))
        return ((reference if backend == "reference" else learned)(params, x),)  # type: ignore[arg-type]

    given = dict(zip(("x", *names.split()), shapes.split(","), strict=True))
    return Case(name, call, given, {"B": 2, "M": 3, "T": 4, "E": 3, **sizes}, frozenset(tags.split()))


CASES = (
    _case("token", "position token", "M E,T E,E", tags="tiny", M=1, T=2, E=2),
    _case("a batch", "position", "B M E,T E", T=3),
    _case("a batch with a token", "position token", "B M E,T E,E"),
    _case("only a token", "position token", "B M E,T E,E", tags="empty", M=0, T=1),
)
