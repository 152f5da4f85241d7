"""Sinusoidal positions, added to what stands there.

    y[m, 2i] = x[m, 2i] + sin(position · base^(−2i / E))        y[m, 2i + 1] = x[m, 2i + 1] + cos(the same)

The sum is in float32, or float64 where that came in.

Source: Vaswani et al., "Attention is all you need" (2017).
"""

import torch
from torch import Tensor

from .._core.case import Case
from .._core.kinds import check_kinds, check_tensors, wide
from .._core.shapes import Signature
from ._positions import Positions, angles, frequencies, placed

SIGNATURE = Signature.parse("x M E ; positions? M -> y M E")


def sine(x: Tensor, positions: Positions = 0, base: float = 10000.0) -> Tensor:
    """x + sin(position · base^(−2i / E)) in feature 2i, and the cosine in feature 2i + 1.

    Args:
        x: ``[..., M, E]``; zeros give the table itself.
        positions: where the first token stands, the others behind it, or integers ``[..., M]``, where each does.
        base: of the frequencies.

    Returns:
        ``[..., M, E]`` in x's dtype.

    Raises:
        ShapeError: positions do not fit x.
        TypeError, ValueError: they are no integers, or base is not above 0.

    Example:
        >>> sine(torch.zeros(2, 4))
        tensor([[0.0000, 1.0000, 0.0000, 1.0000],
                [0.8415, 0.5403, 0.0100, 0.9999]])
    """
    check_tensors({"x": x})
    check_kinds({"x": x}, {})
    sizes, _ = SIGNATURE.check({"x": x})
    at = placed(positions, sizes["M"], x.device)
    SIGNATURE.check({"x": x, "positions": at})
    turns = angles(at, frequencies(sizes["E"], base, x.device))
    table = torch.stack([turns.sin(), turns.cos()], -1).flatten(-2)[..., : sizes["E"]]
    return (x.to(wide(x.dtype)) + table.to(wide(x.dtype))).to(x.dtype)


def reference(x: Tensor, start: int) -> Tensor:
    """The specification, in plain torch."""
    M, E = x.shape[-2:]
    m, i = torch.arange(start, start + M)[:, None], torch.arange(E)
    theta = m * 10000.0 ** (-2 * (i // 2).double() / max(1, E))
    return x + torch.where(i % 2 == 0, theta.sin(), theta.cos()).to(x.dtype)


def _case(name: str, x: str, start: int = 0, tags: str = "", **sizes: int) -> Case:
    def call(x: Tensor, backend: str | None = None) -> tuple[Tensor]:
        return (reference(x, start) if backend == "reference" else sine(x, start),)

    return Case(name, call, {"x": x}, {"B": 2, "M": 3, "E": 4, **sizes}, frozenset(tags.split()))


CASES = (
    _case("plain", "M E", tags="tiny", M=2, E=2),
    _case("a batch from a later position", "B M E", 1000, E=5),
    _case("no rows", "M E", tags="empty", M=0),
)
