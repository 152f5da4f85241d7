"""Simplicial embedding: features in chunks, each of them a point of a simplex.

    y = softmax(x / temperature) over every chunk of E / L features

Source: Lavoie et al., "Simplicial embeddings in self-supervised learning and downstream classification" (2022).
"""

import torch
from torch import Tensor

from .._core.case import Case
from .._core.errors import ShapeError
from .._core.kinds import check_kinds, check_number, check_tensors, is_integer, wide
from .._core.shapes import Signature
from .softmax import softmax

SIGNATURE = Signature.parse("x E -> y E")


def simplicial(x: Tensor, L: int, temperature: float = 1.0, *, backend: str | None = None) -> Tensor:
    """softmax(x / temperature) over each of L chunks of E / L features.

    Args:
        x: ``[..., E]``.
        L: how many chunks; E is a multiple of it.
        temperature: the lower, the nearer to a corner; above 0.
        backend: as of :func:`xfn.softmax`.

    Returns:
        ``[..., E]`` in x's dtype, of which every chunk sums to 1.

    Raises:
        ShapeError: E is no multiple of L.
        TypeError, ValueError: x is of no floating dtype, L no number of chunks, or the temperature not above 0.

    Example:
        >>> simplicial(torch.tensor([0.0, 0.0, 1.0, 3.0]), 2, temperature=2.0)
        tensor([0.5000, 0.5000, 0.2689, 0.7311])
    """
    check_tensors({"x": x})
    check_kinds({"x": x}, {})
    sizes, _ = SIGNATURE.check({"x": x})
    if not is_integer(L) or isinstance(L, Tensor) or L < 1:
        raise ValueError(f"L={L!r} is no number of chunks")
    if sizes["E"] % L:
        raise ShapeError(f"x [..., E] has E={sizes['E']}, of which L={L} chunks cannot be made")
    if check_number("temperature", temperature) <= 0:
        raise ValueError(f"temperature={temperature} must be above 0")
    y = x if temperature == 1 else x.to(wide(x.dtype)) / temperature
    return softmax(y.unflatten(-1, (L, sizes["E"] // L)), backend=backend).flatten(-2).to(x.dtype)


def reference(x: Tensor, L: int, temperature: float) -> Tensor:
    """The specification, in plain torch."""
    return torch.cat([(chunk / temperature).softmax(-1) for chunk in x.chunk(L, -1)], -1)


def _case(name: str, x: str, L: int, temperature: float = 1.0, tags: str = "", **sizes: int) -> Case:
    def call(x: Tensor, backend: str | None = None) -> tuple[Tensor]:
        return (reference(x, L, temperature) if backend == "reference" else simplicial(x, L, temperature),)

    return Case(name, call, {"x": x}, {"B": 2, "M": 3, "E": 6, **sizes}, frozenset(tags.split()))


CASES = (
    _case("a row", "E", 2, 0.5, tags="tiny", E=4),
    _case("plain", "B M E", 3),
    _case("one chunk", "M E", 1, 2.0),
    _case("no rows", "M E", 3, tags="empty", M=0),
)
