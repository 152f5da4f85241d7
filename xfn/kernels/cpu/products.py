"""Products over a pattern's entries in C++: see xfn/csrc/cpu/sparse.h."""

import torch
from torch import Tensor

from ..._core.entries import Entries, batched
from ..._core.kinds import wide
from .library import isa
from .library import supports as supports

DETAIL = isa()
OPS = torch.ops.xfn_cpu


class Compiled(Entries):
    def between(self, q: Tensor, k: Tensor) -> Tensor:
        t = self.tables
        batch, operands = batched((q, 3), (k, 3), (t.row_ends, 2), (t.columns, 2))
        found: Tensor = OPS.sparse_between(*operands)
        return found.reshape(*batch, *found.shape[1:])

    def to_queries(self, values: Tensor, v: Tensor) -> Tensor:
        t = self.tables
        batch, operands = batched((values.to(wide(v.dtype)), 2), (v, 3), (t.row_ends, 2), (t.columns, 2))
        found: Tensor = OPS.sparse_mix(*operands, None, values.shape[-2])
        return found.reshape(*batch, *found.shape[1:])

    def to_keys(self, values: Tensor, q: Tensor, G: int) -> Tensor:
        t = self.tables
        tables = ((t.column_ends, 2), (t.rows, 2), (t.order, 2))
        batch, operands = batched((values.to(wide(q.dtype)), 2), (q, 3), *tables)
        found: Tensor = OPS.sparse_mix(*operands, G)
        return found.reshape(*batch, *found.shape[1:])

    def softmax(self, values: Tensor) -> Tensor:
        batch, operands = batched((values, 2), (self.tables.row_ends, 2))
        found: Tensor = OPS.sparse_softmax(*operands)
        return found.reshape(*batch, *found.shape[1:])
