"""``xformers.sparse`` under its old names: tensors that hold blocks, or entries, and stand for the whole matrix.

What torch does to them by name it does to what they hold: products, softmax, masked products, dropout, copies. Their
``values()`` and ``grad`` are of what is there alone.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..sparsity import Csr
from .components.attention import SparseCS
from .ops.tiled_matmul import masked_matmul

MATMUL = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__}
SOFTMAX = {torch.softmax, Tensor.softmax, F.softmax}
DROPOUT = {F.dropout, torch.dropout, torch.dropout_}
ADD, MUL = {torch.add, Tensor.add, Tensor.__add__}, {torch.mul, Tensor.mul, Tensor.__mul__}
AND = {torch.logical_and, Tensor.logical_and, Tensor.__and__}
TRANSPOSE, EQUAL = {torch.transpose, Tensor.transpose}, {torch.equal, Tensor.equal}
GRAD: Any = Tensor.grad.__get__  # type: ignore[union-attr]
SIZES: dict[Any, Callable[[Any], Any]] = {
    Tensor.shape.__get__: lambda x: x.full,  # type: ignore[attr-defined]
    Tensor.ndim.__get__: lambda x: len(x.full),  # type: ignore[attr-defined]
    Tensor.dim: lambda x: len(x.full),
    Tensor.numel: lambda x: x.full.numel(),
}


class Held(torch.Tensor):
    """A tensor of values, and the places at which they are."""

    full: torch.Size
    places: Any
    placed: Callable[[torch.device], Any]

    @classmethod
    def hold(cls, values: Tensor, places: Any, full: Any) -> Any:
        """The values at those places of a tensor of shape ``full``."""
        made = values.as_subclass(cls)
        made.places, made.full = places, torch.Size(full)
        return made

    def values(self) -> Tensor:
        """What is there."""
        return self.as_subclass(Tensor)

    def with_values(self, values: Tensor) -> Any:
        """Others at the same places."""
        return self.hold(values, self.places, self.full)

    def __repr__(self, *args: Any, **kwargs: Any) -> str:  # type: ignore[override]
        return f"{type(self).__name__}(shape={tuple(self.full)}, values={self.values()!r})"

    def __deepcopy__(self, memo: Any) -> Any:
        values = self.values().detach().clone().requires_grad_(self.requires_grad)
        return self.hold(values, copy.deepcopy(self.places, memo), self.full)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        own: Any = next((x for x in args if isinstance(x, cls)), None)
        if func in SIZES:
            return SIZES[func](own)
        if func is Tensor.size:
            return own.full[args[1]] if len(args) > 1 else own.full
        if func in MATMUL:
            return own.product(*args[1:]) if args[0] is own else NotImplemented
        if func in SOFTMAX:
            dim = kwargs["dim"] if "dim" in kwargs else args[1]
            return own.softened() if dim in (-1, len(own.full) - 1) else NotImplemented
        if func is masked_matmul:
            return own.sampled(args[0], args[1])
        if func in DROPOUT:
            return own.with_values(func(own.values(), *args[1:], **kwargs))
        if func in MUL | ADD:
            return own.combined(func, *args)
        if func in AND:
            return own.met(next(x for x in args if x is not own))
        if func in TRANSPOSE:
            return own.swapped(*args[1:])
        if func in (Tensor.detach, Tensor.clone):
            return own.with_values(func(own.values(), *args[1:], **kwargs))
        if func is Tensor.to:
            moved = own.values().to(*args[1:], **kwargs)
            return own.hold(moved, own.placed(moved.device), own.full)
        if func is Tensor.copy_:
            return args[0].refilled(args[1])
        if func in EQUAL:
            a, b = args
            same = type(a) is type(b) and a.full == b.full and torch.equal(a.pattern(), b.pattern())
            return same and torch.equal(a.values(), b.values())
        if func is Tensor.to_dense:
            return own.spread()
        parent: Any = super()
        found = parent.__torch_function__(func, types, args, kwargs)
        if func == GRAD:
            return None if found is None else own.with_values(found.as_subclass(Tensor))
        return found

    def refilled(self, other: Any) -> Any:
        """This tensor, holding what another holds."""
        assert type(other) is type(self), f"{type(self).__name__} is copied to from its own kind"
        assert other.full == self.full, f"shape={tuple(self.full)}, but {tuple(other.full)} was given"
        with torch.no_grad(), torch.DisableTorchFunctionSubclass():
            self.set_(other.values().detach().to(self.device, self.dtype).clone())  # type: ignore[call-overload]
        self.places = other.placed(self.device)
        return self

    def combined(self, func: Any, *given: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no {func.__name__}")

    def met(self, other: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no logical_and")

    def swapped(self, *dims: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no transpose")


class SparseCSRTensor(Held):
    """A batch of matrices ``[B, M, N]`` with one pattern; values are ``[B, Z]``, row by row.

    Args:
        row_offsets: where each row begins, and where the last one ends: ``[M + 1]``.
        column_indices: the column of each entry, ``[Z]``.
        values: ``[B, Z]``.
        shape: (B, M, N).

    Example:
        >>> eye = SparseCSRTensor.from_dense(torch.eye(2)[None])
        >>> eye @ torch.tensor([[[1.0], [2.0]]])
        tensor([[[1.],
                 [2.]]])
    """

    @staticmethod
    def __new__(cls, row_offsets: Tensor, column_indices: Tensor, values: Tensor, shape: Any) -> Any:
        rows = torch.arange(len(row_offsets) - 1, device=values.device).repeat_interleave(row_offsets.diff())
        return cls.hold(values, Csr.from_coo(rows, column_indices.long(), tuple(shape)[1:]), shape)

    def __init__(self, *args: Any) -> None:
        super().__init__()

    @classmethod
    def from_dense(cls, matrix: Tensor) -> Any:
        """The entries that are not zero; all matrices have the same.

        Raises:
            ValueError: they have not.
        """
        seen = matrix != 0
        if matrix.dim() != 3 or bool((seen != seen[:1]).any()):
            raise ValueError("a batch of matrices [B, M, N] has one pattern, the same in all")
        pattern = seen.any(0)
        return cls.hold(matrix[:, pattern], Csr.from_mask(pattern), matrix.shape)

    def matrix(self) -> SparseCS:
        """The same as a :class:`~xfn.compat.components.attention.SparseCS`."""
        return SparseCS.wrap(self.places, self.values())

    def pattern(self) -> Tensor:
        """``[M, N]``, True where there is an entry."""
        return self.places.to_mask()  # type: ignore[no-any-return]

    def placed(self, device: torch.device) -> Csr:
        """The pattern on a device."""
        if self.places.columns.device == device:
            return self.places  # type: ignore[no-any-return]
        return Csr.from_mask(self.pattern().to(device))

    def spread(self) -> Tensor:
        dense = self.values().new_zeros(self.full)
        dense[:, self.pattern()] = self.values()
        return dense

    def product(self, b: Tensor) -> Tensor:
        return self.matrix().spmm(b)

    def softened(self) -> Any:
        return self.with_values(self.matrix().softmax().values)

    def sampled(self, a: Tensor, b: Tensor) -> Any:
        return self.with_values(self.matrix().matmul_with_mask(a, b).values)

    def combined(self, func: Any, *given: Any) -> Any:
        """Sums and products with a number, or with what has the same entries."""
        others = [x for x in given if isinstance(x, Tensor) and x is not self]
        if func in ADD and not all(isinstance(x, SparseCSRTensor) for x in given):
            raise NotImplementedError("a sparse tensor is added to a sparse one")
        for x in others:
            if isinstance(x, SparseCSRTensor) and not torch.equal(x.pattern(), self.pattern()):
                return self.from_dense(func(*(y.to_dense() if isinstance(y, Held) else y for y in given)))
        return self.with_values(func(*(y.values() if isinstance(y, Held) else y for y in given)))

    def met(self, other: Any) -> Any:
        dense = other.to_dense() if isinstance(other, Held) else other
        return self.from_dense(torch.logical_and(self.spread(), dense))

    def swapped(self, *dims: int) -> Any:
        assert {dim % 3 for dim in dims} == {1, 2}, "the two dims of the matrices change places"
        turned = self.matrix().transpose()
        B, M, N = self.full
        return self.hold(turned.values, turned.csr, (B, N, M))


class BlockSparseTensor(Held):
    """A batch of matrices ``[Z, C, h · b, w · b]`` of which some blocks exist; values are ``[Z, blocks, b, b]``.

    Args:
        values: the blocks, in the order of ``layout.nonzero()``.
        layout: ``[C, h, w]``, not zero where there is a block; b is 16 or more.

    Example:
        >>> x = BlockSparseTensor(torch.ones(1, 2, 16, 16), torch.tensor([[[1, 0], [1, 0]]]))
        >>> (x @ torch.ones(1, 1, 32, 1)).unique()
        tensor([16.])
    """

    @staticmethod
    def __new__(cls, values: Tensor, layout: Tensor) -> Any:
        Z, _, b, width = values.shape
        assert b == width, f"blocks are square, but got {b} × {width}"
        assert b >= 16, f"a block is 16 × 16 at least, but got {b} × {b}"
        assert values.device == layout.device, f"values are on {values.device}, but the layout is on {layout.device}"
        C, h, w = layout.shape
        return cls.hold(values, layout, (Z, C, h * b, w * b))

    def __init__(self, *args: Any) -> None:
        super().__init__()

    def pattern(self) -> Tensor:
        """The layout."""
        return self.places  # type: ignore[no-any-return]

    def placed(self, device: torch.device) -> Tensor:
        """The layout on a device."""
        return self.places.to(device)  # type: ignore[no-any-return]

    def at(self) -> tuple[Tensor, Tensor, Tensor]:
        """Matrix, row and column of each block."""
        return self.places.nonzero(as_tuple=True)  # type: ignore[no-any-return]

    def row(self) -> Tensor:
        """Which of all rows of blocks each is in."""
        c, i, _ = self.at()
        rows: int = self.places.shape[1]
        return c * rows + i

    def spread(self) -> Tensor:
        values, (c, i, j) = self.values(), self.at()
        b = values.shape[-1]
        dense = values.new_zeros(self.full).unflatten(-1, (-1, b)).unflatten(-3, (-1, b)).transpose(-3, -2)
        dense[:, c, i, j] = values
        y: Tensor = dense.transpose(-3, -2).flatten(-2).flatten(-3, -2)
        return y

    def product(self, x: Tensor) -> Tensor:
        values, (c, _, j) = self.values(), self.at()
        Z, C, M, _ = self.full
        b = values.shape[-1]
        parts = values @ x.unflatten(-2, (-1, b))[:, c, j]
        sums = parts.new_zeros(Z, C * M // b, b, x.shape[-1]).index_add(1, self.row(), parts)
        y: Tensor = sums.reshape(Z, C, M, -1)
        return y

    def softened(self) -> Any:
        values, row = self.values(), self.row()
        (Z, C, M, _), b = self.full, values.shape[-1]
        none = values.new_full((Z, C * M // b, b), -torch.inf)
        top = none.scatter_reduce(1, row[None, :, None].expand(Z, -1, b), values.detach().amax(-1), "amax")
        top = torch.where(top == -torch.inf, 0, top)
        powers = (values - top[:, row].unsqueeze(-1)).exp()
        sums = torch.zeros_like(none).index_add(1, row, powers.sum(-1))[:, row].unsqueeze(-1)
        return self.with_values(powers / torch.where(sums == 0, 1, sums))

    def sampled(self, a: Tensor, b: Tensor) -> Any:
        (c, i, j), side = self.at(), self.values().shape[-1]
        rows, columns = (t.unflatten(-2, (-1, side)) for t in (a, b.mT))
        return self.with_values(rows[:, c, i] @ columns[:, c, j].mT)
