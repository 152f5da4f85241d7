"""Products over a pattern's entries in plain torch: rows of features are gathered, some entries at a time."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..._core.csr import lines_of
from ..._core.entries import Entries, batched
from ..._core.kinds import wide

ELEMENTS = 1 << 20
"""Features gathered at a time, over all examples and heads: 4 MiB in float32."""


class Gathered(Entries):
    def between(self, q: Tensor, k: Tensor) -> Tensor:
        batch, (q, k, rows, columns) = batched((q, 3), (k, 3), (self._rows(), 2), (self.tables.columns, 2))
        B, H = math.prod(batch), q.shape[-2]
        far, near = Side(k, B, H), Side(q, B, H)
        values = far.data.new_zeros(B, H, columns.shape[-1])
        for part in self._parts(values, q.shape[-1]):
            m, live = self._some(rows, part, near.length)
            n, _ = self._some(columns, part, far.length)
            found = (near.gather(m) * far.gather(n)).sum(-1)
            values[..., part] = torch.where(live, found, 0)
        return values.reshape(*batch, *values.shape[1:])

    def to_queries(self, values: Tensor, v: Tensor) -> Tensor:
        """Each head reads the key head that it shares."""
        return self._sum(values, v, self.tables.columns, self._rows(), self.tables.shape[0], values.shape[-2])

    def to_keys(self, values: Tensor, q: Tensor, G: int) -> Tensor:
        return self._sum(values, q, self._rows(), self.tables.columns, self.tables.shape[1], G)

    def _sum(self, values: Tensor, side: Tensor, read: Tensor, written: Tensor, lines: int, heads: int) -> Tensor:
        batch, (values, side, rows, read, written) = batched(
            (values, 2), (side, 3), (self._rows(), 2), (read, 2), (written, 2)
        )
        B, H, F = math.prod(batch), values.shape[1], side.shape[-1]
        near = Side(side, B, H)
        total = near.data.new_zeros(B * heads * lines, F)
        heads_of = torch.arange(H, device=side.device) // max(H // max(heads, 1), 1)
        line = (torch.arange(B, device=side.device)[:, None] * heads + heads_of)[..., None] * lines
        for part in self._parts(values, F):
            _, live = self._some(rows, part, self.tables.shape[0])
            m, _ = self._some(read, part, near.length)
            n, _ = self._some(written, part, lines)
            product = torch.where(live, values[..., part], 0).unsqueeze(-1) * torch.where(
                live.unsqueeze(-1), near.gather(m), 0
            )
            total.index_add_(0, (line + n).flatten(), product.flatten(0, -2))
        return total.view(B, heads, lines, F).transpose(1, 2).reshape(*batch, lines, heads, F)

    def logsumexp(self, values: Tensor) -> Tensor:
        """log Σ exp over the entries of each row, ``[..., H, M]``; −∞ where there are none."""
        M, rows = self.tables.shape[0], self._rows()
        values, rows = torch.broadcast_tensors(values, rows)
        empty = values.new_zeros(*values.shape[:-1], M + 1)
        top = (empty - torch.inf).scatter_reduce(-1, rows, values, "amax")
        top = torch.where(top == -torch.inf, 0, top)
        return (empty.scatter_add(-1, rows, (values - top.gather(-1, rows)).exp()).log() + top)[..., :M]

    def softmax(self, values: Tensor) -> Tensor:
        M, rows = self.tables.shape[0], self._rows()
        lse = torch.nn.functional.pad(self.logsumexp(values), (0, 1))
        values, rows = torch.broadcast_tensors(values, rows)
        lse = lse.expand(*values.shape[:-1], M + 1).gather(-1, rows)
        return torch.where((rows < M) & (lse != -torch.inf), (values - lse).exp(), 0)

    def _rows(self) -> Tensor:
        return lines_of(self.tables.row_ends, self.tables.columns.shape[-1])

    @staticmethod
    def _parts(values: Tensor, features: int) -> Iterator[slice]:
        B, H, Z = values.shape
        some = max(1, ELEMENTS // max(B * H * features, 1))
        return (slice(i, i + some) for i in range(0, Z if B * H else 0, some))

    @staticmethod
    def _some(places: Tensor, part: slice, most: int) -> tuple[Tensor, Tensor]:
        """Places of some entries, with 0 for what is no entry; and whether it is one."""
        found = places[..., part].long()
        live = found < most
        return torch.where(live, found, 0), live


class Side:
    """Rows of features ``[B, L, heads, F]``, as each of H heads reads them."""

    def __init__(self, t: Tensor, B: int, H: int) -> None:
        batch, self.length, heads, features = t.shape
        self.data = t.to(wide(t.dtype)).transpose(1, 2).reshape(batch * heads * self.length, features)
        example = torch.arange(B, device=t.device) % max(batch, 1)
        head = torch.arange(H, device=t.device) // max(H // max(heads, 1), 1)
        self.start = ((example[:, None] * heads + head) * self.length)[..., None]

    def gather(self, places: Tensor) -> Tensor:
        """``[B, H, z, F]`` of the rows at ``[B|1, H|1, z]``."""
        at = self.start + places
        return self.data.index_select(0, at.flatten()).view(*at.shape, self.data.shape[-1])
