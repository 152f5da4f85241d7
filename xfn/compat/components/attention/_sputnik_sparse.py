"""Sparse matrices of logits: the entries that a mask has, and no others."""

from typing import Any

import torch
from torch import Tensor

from ....ops.sddmm import sddmm
from ....ops.sparse_softmax import sparse_softmax
from ....ops.spmm import spmm
from ....sparsity import Csr


class SparseCS:
    """A batch of sparse matrices ``[B, M, N]`` with one pattern, or a mask of ones.

    Args:
        matrix: ``[M, N]`` or ``[B, M, N]``, whose entries are where it is not zero in any example.
        device: where to; by default that of the matrix.

    Example:
        >>> SparseCS(torch.eye(3)).spmm(torch.arange(3.0)[:, None])
        tensor([[[0.],
                 [1.],
                 [2.]]])
    """

    is_sparse = True

    def __init__(self, matrix: Tensor, device: Any = None) -> None:
        matrix = matrix.to(device)
        batch = matrix if matrix.dim() > 2 else matrix.unsqueeze(0)
        seen = (batch != 0).any(0)
        values = batch[:, seen]
        self.csr = Csr.from_mask(seen)
        self.values = values.float() if matrix.dtype == torch.bool else values

    @classmethod
    def wrap(cls, csr: Csr, values: Tensor) -> "SparseCS":
        """That of a pattern, and of values ``[B, Z]``."""
        made = cls.__new__(cls)
        made.csr, made.values = csr, values
        return made

    @property
    def shape(self) -> torch.Size:
        """``(M, N)``."""
        return torch.Size(self.csr.shape)

    @property
    def row_offsets(self) -> Tensor:
        """Where each row begins, and where the last one ends."""
        return torch.nn.functional.pad(self.csr.row_ends, (1, 0))

    @property
    def column_indices(self) -> Tensor:
        """The column of each entry."""
        return self.csr.columns

    @property
    def row_indices(self) -> Tensor:
        """The rows, longest first."""
        return self.row_offsets.diff().argsort(descending=True, stable=True).int()

    @property
    def ndim(self) -> int:
        return 3

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    def matmul_with_mask(self, a: Tensor, b: Tensor) -> "SparseCS":
        """The entries of a b, of ``a [B, M, K]`` and ``b [B, K, N]``."""
        return SparseCS.wrap(self.csr, sddmm(self.csr, a.unsqueeze(-2), b.mT.unsqueeze(-2)).squeeze(-2))

    def softmax(self) -> "SparseCS":
        """The softmax over the entries of each row."""
        return SparseCS.wrap(self.csr, sparse_softmax(self.csr, self.values.unsqueeze(-2)).squeeze(-2))

    def spmm(self, b: Tensor) -> Tensor:
        """The product with ``b [B, N, V]``."""
        b = b if b.dim() > 2 else b.unsqueeze(0)
        return spmm(self.csr, self.values.unsqueeze(-2).to(b.dtype), b.unsqueeze(-2)).squeeze(-2)

    def to_dense(self) -> Tensor:
        """``[B, M, N]``."""
        return self.csr.to_dense(self.values.unsqueeze(-2)).squeeze(-3)

    def transpose(self) -> "SparseCS":
        """``[B, N, M]``."""
        seen = self.csr.to_mask().reshape(self.csr.shape).mT
        return SparseCS.wrap(Csr.from_mask(seen), self.to_dense().mT[:, seen])

    def logical_and(self, other: Tensor) -> "SparseCS":
        """The entries that a dense mask has too."""
        seen = self.csr.to_mask().reshape(self.csr.shape) & (other != 0).reshape(-1, *self.csr.shape).any(0)
        return SparseCS.wrap(Csr.from_mask(seen), self.to_dense()[:, seen])

    def to(self, device: Any) -> "SparseCS":
        """On another device, or of another dtype."""
        if isinstance(device, torch.dtype):
            return SparseCS.wrap(self.csr, self.values.to(device))
        seen = self.csr.to_mask().reshape(self.csr.shape).to(device)
        return SparseCS.wrap(Csr.from_mask(seen), self.values.to(device))

    def __and__(self, other: Tensor) -> "SparseCS":
        return self.logical_and(other)

    def __mul__(self, other: float) -> "SparseCS":
        return SparseCS.wrap(self.csr, self.values * other)

    __rmul__ = __mul__

    def __add__(self, other: "SparseCS") -> "SparseCS":
        if not torch.equal(self.csr.to_mask(), other.csr.to_mask()):
            raise ValueError("sparse matrices add up where they have the same entries")
        return SparseCS.wrap(self.csr, self.values + other.values)


def _dense_to_sparse(matrix: Tensor, device: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values, rows by length, row offsets and columns of a matrix ``[M, N]``."""
    found = SparseCS(matrix, device)
    return found.values[0], found.row_indices, found.row_offsets, found.column_indices
