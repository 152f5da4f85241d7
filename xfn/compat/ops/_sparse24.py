"""Tensors that are pruned 2:4, and what may be done with them: products with dense matrices, and what is zero at zero.

They hold the dense matrix beneath, on which everything is computed, and which of its entries are kept.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._tiles24 import packed


class Sparse24Tensor(Tensor):
    """A pruned matrix; :func:`sparsify24` makes one."""

    _keep: Tensor
    _flipped: bool

    @property
    def threads_masks(self) -> Tensor:
        """Which entries are kept, ``[M, N]``."""
        return self._keep.t() if self._flipped else self._keep

    @property
    def packed(self) -> Tensor:
        """Two entries of each four in a row, ``[M, N / 2]``."""
        return packed(self._sp24_to_dense(), self.threads_masks)[0]

    @property
    def meta(self) -> Tensor:
        """Where among the four they were."""
        return packed(self._sp24_to_dense(), self.threads_masks)[1]

    @property
    def packed_t(self) -> Tensor:
        """As ``packed``, of the columns."""
        return packed(self._sp24_to_dense().t(), self.threads_masks.t())[0]

    @property
    def meta_t(self) -> Tensor:
        """As ``meta``, of the columns."""
        return packed(self._sp24_to_dense().t(), self.threads_masks.t())[1]

    def _sp24_to_dense(self) -> Tensor:
        found: Tensor = dense(self)
        return found

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{type(self).__name__}(shape={self.shape})"

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = func.__name__
        if name in ("__get__", "__set__"):
            name = f"_.{getattr(func, '__self__', func).__name__}"
        if name in RULES:
            return RULES[name](func, *args, **(kwargs or {}))
        inside = name[0] == "_" and name[:2] != "__"
        written = (name[-1] == "_" and name[-2:] != "__") or name[:3] == "__i" or name == "__setitem__"
        found = None if written else _outright(func, *args, **(kwargs or {}))
        several = found if isinstance(found, (tuple, list)) else (found,)
        if written or (not inside and any(isinstance(t, Tensor) for t in several)):
            raise NotImplementedError(f"{cls.__name__} has no {name}: _sp24_to_dense() has every operation")
        return found


class Sparse24TensorCutlass(Sparse24Tensor):
    """That of the backend ``"cutlass"``, which has products without a bias."""

    def _suits(self, other: Tensor, free: int, bias: Tensor | None) -> None:
        """Refuse what the backend has no product for."""
        if bias is not None:
            raise NotImplementedError("backend 'cutlass' adds no bias: add it to the product, or take 'cusparselt'")


class Sparse24TensorCuSparseLt(Sparse24Tensor):
    """That of the backend ``"cusparselt"``, whose dense matrices have one dtype with it and sides that 8 divides."""

    def _suits(self, other: Tensor, free: int, bias: Tensor | None) -> None:
        """Refuse what the backend has no product for."""
        if free % 8:
            raise NotImplementedError(f"the free side of {list(other.shape)}, {free}, must be aligned to 8")
        wrong = [t.dtype for t in (other, bias) if t is not None and t.dtype != self.dtype]
        if wrong and not torch.is_autocast_enabled(self.device.type):
            raise NotImplementedError(f"products are of tensors of the same data type, not {self.dtype} and {wrong[0]}")


def made(values: Tensor, keep: Tensor, flipped: bool, cls: type[Sparse24Tensor]) -> Sparse24Tensor:
    """What is left of a matrix, as one of a class; within compiled code, which knows no such classes, as it is."""
    if torch.compiler.is_compiling():
        return values  # type: ignore[return-value]
    x = values.as_subclass(cls)
    x._keep, x._flipped = keep, flipped
    return x


def like(values: Tensor, pattern: Sparse24Tensor, cls: type[Sparse24Tensor] | None = None) -> Sparse24Tensor:
    return made(values, pattern._keep, pattern._flipped, cls or type(pattern))


# What may be done with a pruned matrix: by name, on the dense tensors beneath.


def _outright(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What func does with the tensors beneath."""
    return Tensor.__torch_function__(func, (), args, kwargs)  # type: ignore[no-untyped-call]


def dense(x: Any) -> Any:
    return _outright(Tensor.view_as, x, x) if isinstance(x, Sparse24Tensor) else x


def _same(func: Callable[..., Any], x: Sparse24Tensor, *args: Any, **kwargs: Any) -> Sparse24Tensor:
    return like(_outright(func, x, *args, **kwargs), x)


def _itself(func: Callable[..., Any], x: Sparse24Tensor, *args: Any, **kwargs: Any) -> Sparse24Tensor:
    _outright(func, x, *args, **kwargs)
    return x


def _viewed(func: Callable[..., Any], x: Sparse24Tensor, *shape: Any) -> Sparse24Tensor:
    flat = shape[0] if len(shape) == 1 and isinstance(shape[0], Sequence) else shape
    if tuple(flat) != tuple(x.shape):
        raise NotImplementedError(f"{list(x.shape)} has no view of shape {list(flat)}, only of its own")
    return x


def _transposed(func: Callable[..., Any], x: Sparse24Tensor, *_: Any) -> Sparse24Tensor:
    return made(dense(x).t(), x._keep, not x._flipped, type(x))


def _pointwise(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Sparse24Tensor:
    """What is zero at zero, or made so; a dense factor is pruned."""
    pattern = next(a for a in args if isinstance(a, Sparse24Tensor))
    for a in args:
        if isinstance(a, Sparse24Tensor):
            if a._keep is not pattern._keep or a._flipped != pattern._flipped:
                raise ValueError(f"{func.__name__} wants operands that keep the same entries")
        elif isinstance(a, Tensor) and "mul" not in func.__name__:
            raise ValueError(f"{func.__name__} wants operands that are sparse, but one is a {type(a).__name__}")
    values = func(*map(dense, args), **kwargs)
    return like(torch.where(pattern.threads_masks, values, 0), pattern)


def _product(func: Callable[..., Any], a: Any, b: Any) -> Tensor:
    return _multiplied(b, a) if func.__name__ == "__rmatmul__" else _multiplied(a, b)


def _affine(func: Callable[..., Any], bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    if bias.dim() != 1 or isinstance(a, Sparse24Tensor):
        raise NotImplementedError("addmm takes a bias [N], a dense [M, K] and a sparse [K, N]")
    return _multiplied(a, b, bias)


def _linear(func: Callable[..., Any], x: Any, weight: Any, bias: Tensor | None = None) -> Tensor:
    return _multiplied(x, weight.t(), bias)


def _multiplied(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias, where one of a and b is sparse."""
    if isinstance(a, Sparse24Tensor) and isinstance(b, Sparse24Tensor):
        raise ValueError("a sparse matrix multiplies dense ones, not another sparse one")
    sparse, other = (a, b) if isinstance(a, Sparse24Tensor) else (b, a)
    if other.dim() < 2 or (other is b and b.dim() != 2) or a.shape[-1] != b.shape[0]:
        raise NotImplementedError(f"no product of {list(a.shape)} and {list(b.shape)}: [M, K] times [K, N]")
    free = b.shape[1] if other is b else a.shape[:-1].numel()
    sparse._suits(other, free, bias)  # type: ignore[attr-defined]
    return dense(a) @ dense(b) if bias is None else torch.nn.functional.linear(dense(a), dense(b).t(), bias)


RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("relu", "gelu", "silu", "mul", "multiply", "__mul__", "__rmul__"), _pointwise),
    **dict.fromkeys(("add", "__add__", "__radd__"), _pointwise),
    **dict.fromkeys(("mm", "matmul", "__matmul__", "__rmatmul__"), _product),
    **dict.fromkeys(("t", "_.T", "_.mT"), _transposed),
    **dict.fromkeys(("detach", "clone", "_.data"), _same),
    "requires_grad_": _itself,
    "grad": _outright,
    "view": _viewed,
    "addmm": _affine,
    "linear": _linear,
}
