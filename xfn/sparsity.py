"""Sparsity, coefficient by coefficient: which entries of the matrix of logits exist.

A :class:`Csr` lists the entries of a pattern by row and by column, with the permutation between the two, so that no op
over it looks at a matrix or waits for the device. It is shared, or one per head ``[H, M, N]``, or per example
``[..., H, M, N]``; each has exactly its own entries, in tables with room for the Z of the fullest.

    1 0 1 0
    0 1 0 0      Z = 5 entries, numbered by row
    0 0 1 1
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ._core import choice, csr
from ._core.choice import Census
from ._core.csr import Tables
from ._core.errors import ShapeError
from ._core.kinds import check_tensors, is_integer
from ._core.pytree import pytree


@pytree
class Csr:
    """A coefficient-sparse pattern; make one with ``from_mask`` or ``from_coo``. Its tables are leaves, all of them
    int32: a batch of patterns goes through vmap."""

    row_ends: Tensor
    columns: Tensor
    column_ends: Tensor
    rows: Tensor
    order: Tensor

    @staticmethod
    def of(value: object) -> "Csr":
        """What an op takes as its pattern, checked."""
        if not isinstance(value, Csr):
            raise TypeError(f"csr is a sparsity.Csr, but got {type(value).__name__}: write Csr.from_mask(mask)")
        return value

    @staticmethod
    def from_mask(mask: Tensor) -> "Csr":
        """The entries where a mask is True.

        Args:
            mask: boolean ``[M, N]``, ``[H, M, N]`` or ``[..., H, M, N]``.

        Raises:
            TypeError: a mask that is not boolean.
            ShapeError: fewer than two dims.

        Example:
            >>> Csr.from_mask(torch.ones(4, 4, dtype=torch.bool).tril()).columns
            tensor([0, 0, 1, 0, 1, 2, 0, 1, 2, 3], dtype=torch.int32)
        """
        _check_mask(mask)
        *lead, M, N = mask.shape
        flat = mask.reshape(math.prod(lead), M * N)
        owner, place = flat.nonzero().unbind(-1)
        counts = flat.sum(-1)
        places = owner.new_full((len(flat), int(counts.amax()) if len(flat) else 0), M * N)
        places[owner, torch.arange(len(owner), device=mask.device) - (counts.cumsum(0) - counts)[owner]] = place
        return Csr(*(t.reshape(*lead, t.shape[-1]) for t in csr.build(places, M, N)))

    @staticmethod
    def from_coo(rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> "Csr":
        """The entries (rows[i], columns[i]), in any order; one that is named twice is there once.

        Args:
            rows, columns: integers, of one shape ``[E]``.
            shape: (M, N).

        Raises:
            TypeError: what is no tensor of integers.
            ShapeError: rows and columns differ, or an entry lies outside.

        Example:
            >>> Csr.from_coo(torch.tensor([1, 0, 1]), torch.tensor([2, 0, 2]), (2, 3)).to_mask()
            tensor([[ True, False, False],
                    [False, False,  True]])
        """
        for name, given in (("rows", rows), ("columns", columns)):
            if not isinstance(given, Tensor) or not is_integer(given):
                what = given.dtype if isinstance(given, Tensor) else type(given).__name__
                raise TypeError(f"{name} is a tensor of integers, but got {what}")
        if rows.dim() != 1 or rows.shape != columns.shape:
            raise ShapeError(
                f"rows and columns are two lists of one length, but got {list(rows.shape)} and {list(columns.shape)}"
            )
        for name, letter, given, size in (("rows", "M", rows, shape[0]), ("columns", "N", columns, shape[1])):
            least, most = (int(given.min()), int(given.max())) if given.numel() else (0, 0)
            if least < 0 or (given.numel() and most >= size):
                raise ShapeError(f"{name} go from {least} to {most}, but {letter}={size}: they lie in [0, {letter})")
        return Csr(*csr.build(torch.unique(rows.long() * shape[1] + columns.long()), *shape))

    @property
    def tables(self) -> Tables:
        """The five of them, with a dim for heads."""
        fields = (self.row_ends, self.columns, self.column_ends, self.rows, self.order)
        return Tables(*(t.unsqueeze(0) if t.dim() == 1 else t for t in fields))

    @property
    def shape(self) -> tuple[int, int]:
        """(M, N)."""
        return self.row_ends.shape[-1], self.column_ends.shape[-1]

    @property
    def density(self) -> float:
        """The part of the coefficients that exist; of many patterns, on average. It waits for the device."""
        M, N = self.shape
        if not self.row_ends.numel() or not N:
            return 0.0
        return float(self.row_ends[..., -1].double().mean()) / (M * N)

    def transpose(self) -> "Csr":
        """The pattern ``[..., N, M]`` of keys against queries.

        Its entries are numbered by column: ``values[..., csr.order]`` are theirs.
        """
        fields = Tables(self.row_ends, self.columns, self.column_ends, self.rows, self.order)
        return Csr(*fields.transposed())

    def to_mask(self) -> Tensor:
        """The pattern as a boolean ``[M, N]``, or with the leading dims that it was made of."""
        return Tables(self.row_ends, self.columns, self.column_ends, self.rows, self.order).mask()

    def to_dense(self, values: Tensor) -> Tensor:
        """``values [..., H, Z]``, one number an entry, at their places in ``[..., H, M, N]``; zero elsewhere."""
        return self.tables.dense(values)


@dataclass(frozen=True)
class Explanation:
    """Which of dense tiles, block tiles and entries a mask takes, and why; dense tiles cost 1. ``block`` is the size of
    block tiles that is cheapest, of which the part ``tiles`` is live. ``str`` of it is a sentence."""

    takes: str
    density: float
    block: int
    tiles: float
    costs: Mapping[str, float]
    why: str

    def __str__(self) -> str:
        prices = ", ".join(f"{way} {cost:.2f}" for way, cost in self.costs.items())
        exist = f"{self.density:.1%} of the coefficients exist, in {self.tiles:.1%} of the tiles of {self.block}"
        return f"{self.takes}: {exist}; {self.why} (costs: {prices})"


def explain(mask: Tensor, shared: int = 8, device: str | None = None) -> Explanation:
    """Which kernels ``attention(q, k, v, mask)`` takes for its value and gradient, and why.

    Args:
        mask: boolean ``[..., M, N]``, as the attention takes it.
        shared: how many heads of how many examples share it, together.
        device: where it is to run; by default where the mask is.

    Returns:
        An :class:`Explanation`.

    Raises:
        TypeError: a mask that is not boolean.
        ShapeError: fewer than two dims.

    Example:
        >>> explain(torch.eye(512, dtype=torch.bool)).takes
        'entries'
        >>> print(explain(torch.eye(8, dtype=torch.bool).repeat_interleave(64, 0).repeat_interleave(64, 1)))
        block tiles: 12.5% of the coefficients exist, in 12.5% of the tiles of 64; ...
    """
    _check_mask(mask)
    M, N = mask.shape[-2:]
    where = mask.device.type if device is None else torch.device(device).type
    found = Census.of(mask.reshape(math.prod(mask.shape[:-2]), M, N))
    way, block, costs = choice.choose(where, found, shared)
    best = min(costs, key=lambda way: costs[way])
    if M * N < choice.LEAST:
        why = f"M · N = {M * N} is too small to be looked at: that begins at {choice.LEAST}"
    elif where not in choice.PRICES:
        why = (
            f"on {where} a mask is not counted, which would wait for the device: write "
            "sparse_attention(csr, q, k, v) or blocksparse_attention(layout, q, k, v)"
        )
    elif way == best != choice.DENSE:
        why = f"that is {1 / costs[best]:.1f} times faster than dense tiles, by the account"
    else:
        why = f"nothing else is {choice.PRICES[where].margin:g} times faster"
    return Explanation(way, found.density, block, found.tiles(block), costs, why)


def _check_mask(mask: Tensor) -> None:
    check_tensors({"mask": mask})
    if mask.dtype != torch.bool:
        raise TypeError(f"a mask is boolean, True where a query sees a key, but got {mask.dtype}: write mask.bool()")
    if mask.dim() < 2:
        raise ShapeError(f"mask [..., M, N] needs at least 2 dims, but its shape is {list(mask.shape)}")
