"""The tables of a coefficient-sparse pattern: its entries by row, and the same entries by column.

    1 0 1 0      row_ends     [2, 3, 5]         entry e of row m: row_ends[m − 1] ≤ e < row_ends[m]
    0 1 0 0      columns      [0, 2, 1, 2, 3]   the key of each entry
    0 0 1 1      column_ends  [1, 2, 4, 5]
                 rows         [0, 1, 0, 2, 2]   the query of each entry, by column
                 order        [0, 2, 1, 3, 4]   where each entry by column stands by row

Patterns that are stacked have room for as many entries as the fullest has; what is behind ``row_ends[-1]`` is no entry.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LETTERS = "row_ends H|1 M, columns H|1 Z, column_ends H|1 N, rows H|1 Z, order H|1 Z"
"""The tables as constants of a signature."""


class Tables(NamedTuple):
    """All of them int32, each ``[..., M]``, ``[..., N]`` or ``[..., Z]`` with room for Z entries."""

    row_ends: Tensor
    columns: Tensor
    column_ends: Tensor
    rows: Tensor
    order: Tensor

    @property
    def called(self) -> dict[str, str]:
        """What a user knows them by."""
        return dict.fromkeys(self._fields, "csr")

    @property
    def shape(self) -> tuple[int, int]:
        return self.row_ends.shape[-1], self.column_ends.shape[-1]

    def transposed(self) -> "Tables":
        places = torch.arange(self.order.shape[-1], dtype=torch.int32, device=self.order.device)
        back = torch.zeros_like(self.order).scatter(-1, self.order.long(), places.expand_as(self.order))
        return Tables(self.column_ends, self.rows, self.row_ends, self.columns, back)

    def dense(self, values: Tensor) -> Tensor:
        """``values [..., Z]`` at their places in ``[..., M, N]``, zero elsewhere."""
        M, N = self.shape
        lines = lines_of(self.row_ends, self.columns.shape[-1])
        place = torch.where(lines < M, lines * N + self.columns, M * N)
        values, place = torch.broadcast_tensors(values, place)
        empty = values.new_zeros(*values.shape[:-1], M * N + 1)
        return torch.unflatten(empty.scatter(-1, place, values)[..., :-1], -1, (M, N))

    def mask(self) -> Tensor:
        """True at the entries."""
        return self.dense(torch.ones((), dtype=torch.bool, device=self.columns.device))


def lines_of(ends: Tensor, Z: int) -> Tensor:
    """The line of each entry, int64; for what is no entry, the number of lines."""
    one = torch.ones((), dtype=torch.int64, device=ends.device)
    marks = torch.zeros(*ends.shape[:-1], Z + 1, dtype=torch.int64, device=ends.device)
    return marks.scatter_add(-1, ends.long(), one.expand(ends.shape)).cumsum(-1)[..., :Z]


def take(side: Tensor, places: Tensor, H: int) -> Tensor:
    """Of ``[..., L, G, F]`` the rows at ``places [..., H|1, Z]``, as H heads read them: ``[..., H, Z, F]``."""
    side = side.repeat_interleave(H // side.shape[-2], -2).movedim(-2, -3)
    rank = max(side.dim(), places.dim() + 1)
    side, index = (t[(None,) * (rank - t.dim())] for t in (side, places.long().unsqueeze(-1)))
    return torch.take_along_dim(side, index, -2)


def build(places: Tensor, M: int, N: int) -> Tables:
    """From places m · N + n ``[..., Z]``, which rise; M · N stands for what is no entry."""
    rows = places // max(N, 1)
    keys = torch.where(places < M * N, places % max(N, 1), N)
    order = keys.sort(dim=-1, stable=True).indices

    def ends(lines: Tensor, count: int) -> Tensor:
        empty = torch.zeros(*lines.shape[:-1], count + 1, dtype=torch.int64, device=lines.device)
        return empty.scatter_add(-1, lines, torch.ones_like(lines))[..., :count].cumsum(-1).int()

    row_ends, column_ends = ends(rows if N else keys, M), ends(keys, N)
    columns, rows = (torch.where(t < size, t, 0).int() for t, size in ((keys, N), (rows.gather(-1, order), M)))
    return Tables(row_ends, columns, column_ends, rows, order.int())
