"""Rows that are picked, and rows that are added to, under their old names."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._core.errors import ShapeError
from .common import BaseOperator


class ScaledIndexAddFw(BaseOperator):
    """The value of :func:`scaled_index_add`."""


class ScaledIndexAddBw(BaseOperator):
    """Its gradient."""


class IndexSelect(BaseOperator):
    """:func:`index_select_cat`."""


def scaled_index_add(
    input: Tensor, index: Tensor, source: Tensor, scaling: Tensor | None = None, alpha: float = 1.0
) -> Tensor:
    """input[index] += alpha · scaling · source, in place.

    Args:
        input: ``[B, M, D]``.
        index: ``[B']``, which rows of it.
        source: ``[B', M, D]``.
        scaling: ``[D]``, or None.
        alpha: a factor of all.

    Returns:
        ``input``, with gradients to what it was, to source and to scaling.

    Raises:
        ValueError: shapes that contradict each other.

    Example:
        >>> x = torch.zeros(3, 1, 2)
        >>> scaled_index_add(x, torch.tensor([2]), torch.ones(1, 1, 2), torch.tensor([1.0, 2.0]), alpha=0.5)[2]
        tensor([[0.5000, 1.0000]])
    """
    if index.dim() != 1 or source.shape != (index.shape[0], *input.shape[1:]):
        raise ShapeError(
            f"source [B', M, D] has one row for each of index [B'] and those of input [B, M, D], but source is "
            f"{list(source.shape)}, index {list(index.shape)} and input {list(input.shape)}"
        )
    if scaling is not None and scaling.shape != input.shape[-1:]:
        raise ShapeError(f"scaling [D] is {list(scaling.shape)}, but input is {list(input.shape)}")
    wide = torch.promote_types(source.dtype, torch.float32)
    added = source.to(wide) if scaling is None else source.to(wide) * scaling.to(wide)
    return input.index_add_(0, index.long(), (added * alpha).to(input.dtype))


def index_select_cat(sources: Sequence[Tensor], indices: Sequence[Tensor]) -> Tensor:
    """Rows of each source, flattened, one after the other.

    Args:
        sources: ``[B_i, ...]``.
        indices: as many ``[B'_i]``, which rows of each.

    Returns:
        One dim.

    Raises:
        ValueError: there are not as many of one as of the other.

    Example:
        >>> x, rows = torch.arange(6).reshape(3, 2), torch.tensor([2, 0])
        >>> index_select_cat([x, x], [rows, rows[:1]])
        tensor([4, 5, 0, 1, 4, 5])
    """
    if len(sources) != len(indices):
        raise ShapeError(f"there are {len(sources)} sources, but {len(indices)} indices")
    rows = zip(sources, indices, strict=True)
    return torch.cat([source.index_select(0, index.long()).flatten() for source, index in rows])
