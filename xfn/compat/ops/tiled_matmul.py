"""Products of matrices: of those that are given in tiles, and of those that are masked."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

Rows = Sequence[Sequence[Tensor]]


def tiled_matmul(a: Rows, b: Rows) -> list[list[Tensor]]:
    """C_ij = Σ_k A_ik B_kj, as one product.

    Args:
        a: rows of tiles ``[M_i, K_k]``.
        b: rows of tiles ``[K_k, N_j]``.

    Returns:
        Rows of tiles ``[M_i, N_j]``.

    Raises:
        AssertionError: tiles that do not fit.

    Example:
        >>> c = tiled_matmul([[torch.ones(2, 3), torch.ones(2, 1)]], [[torch.ones(3, 5)], [torch.ones(1, 5)]])
        >>> c[0][0].shape, c[0][0].unique()
        (torch.Size([2, 5]), tensor([4.]))
    """
    rows, inner = _sides("a", a)
    same, columns = _sides("b", b)
    if inner != same:
        raise AssertionError(f"a has tiles of {inner} columns, but b has tiles of {same} rows")
    product = torch.cat([torch.cat(list(row), 1) for row in a]) @ torch.cat([torch.cat(list(row), 1) for row in b])
    edges = [list(pairwise(accumulate(sizes, initial=0))) for sizes in (rows, columns)]
    return [[product[top:bottom, left:right] for left, right in edges[1]] for top, bottom in edges[0]]


def tiled_matmul_out(a: Rows, b: Rows, out: Rows) -> None:
    """As :func:`tiled_matmul`, into the tiles of ``out``.

    Example:
        >>> out = [[torch.zeros(2, 5)]]
        >>> tiled_matmul_out([[torch.ones(2, 3)]], [[torch.ones(3, 5)]], out)
        >>> out[0][0].unique()
        tensor([3.])
    """
    for row, found in zip(out, tiled_matmul(a, b), strict=True):
        for tile, value in zip(row, found, strict=True):
            tile.copy_(value)


def masked_matmul(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """a b, with −∞ where a boolean mask is False, or with a floating one added.

    Args:
        a: ``[..., M, K]``.
        b: ``[..., K, N]``.
        mask: broadcasts to ``[..., M, N]``; or one of :mod:`xfn.compat.sparse`, which then is the result's kind.

    Example:
        >>> masked_matmul(torch.ones(1, 2), torch.ones(2, 2), torch.tensor([True, False]))
        tensor([[2., -inf]])
    """
    if has_torch_function((a, b, mask)):
        return handle_torch_function(masked_matmul, (a, b, mask), a, b, mask)
    product = a @ b
    if mask is None:
        return product
    return torch.where(mask, product, -torch.inf) if mask.dtype == torch.bool else product + mask


def _sides(name: str, tiles: Rows) -> tuple[list[int], list[int]]:
    """How many rows and columns the tiles have."""
    shapes = [[tuple(t.shape) for t in row] for row in tiles]
    sides = [row[0][0] for row in shapes if row], [shape[-1] for shape in shapes[0]] if shapes else []
    if not sides[1] or shapes != [[(M, N) for N in sides[1]] for M in sides[0]]:
        raise AssertionError(f"{name} is rows of matrices that are as high as their row and as wide as their column")
    return sides
