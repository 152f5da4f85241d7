"""2:4 sparsity under its old names: of four entries that follow each other, two are kept at most.

A :class:`Sparse24Tensor` holds a pruned matrix and which of its entries are kept. It multiplies dense matrices, and
functions that are zero at zero can be applied to it; here its products are dense, as is what it holds.
"""

import torch
from torch import Tensor

from ._sparse24 import Sparse24Tensor as Sparse24Tensor
from ._sparse24 import Sparse24TensorCuSparseLt as Sparse24TensorCuSparseLt
from ._sparse24 import Sparse24TensorCutlass as Sparse24TensorCutlass
from ._sparse24 import dense, like, made
from ._tiles24 import kept

GRADIENT_SP24, GRADIENT_DENSE, GRADIENT_STE = "24sparse", "24dense", "ste"
BACKEND_CUTLASS, BACKEND_CUSPARSELT, BACKEND_DENSE = "cutlass", "cusparselt", "dense"
SLOPES = {GRADIENT_SP24: (0.0, 1.0), GRADIENT_DENSE: (0.0, 1.0), GRADIENT_STE: (1.0, 1.0)}
"""Of what is pruned and of what is kept, by the kind of gradient."""


CLASSES: dict[str, type[Sparse24Tensor]] = {
    BACKEND_CUTLASS: Sparse24TensorCutlass,
    BACKEND_CUSPARSELT: Sparse24TensorCuSparseLt,
}


def sparsify24(
    x: Tensor, algo: str = "", gradient: str = GRADIENT_SP24, backend: str = BACKEND_CUTLASS
) -> Sparse24Tensor:
    """x with at most two entries kept in each four of a row, and of a column where the algorithm says so.

    Args:
        x: ``[M, N]``.
        algo: ``"largest_values_greedy"``, which ``""`` means too, ``"largest_abs_values_greedy"``, ``"causal1122"``,
            ``"largest_notranspose"`` or ``"largest_abs_notranspose"``.
        gradient: ``"24sparse"`` or ``"24dense"``, pruned as x is, or ``"ste"``, handed through.
        backend: ``"cutlass"`` or ``"cusparselt"``, by whose rules products are refused.

    Returns:
        A :class:`Sparse24Tensor`; x, where it is one.

    Raises:
        RuntimeError: an algorithm that there is not.
        ValueError: a gradient that there is not.
        NotImplementedError: x is no matrix.

    Example:
        >>> x = torch.tensor([[4.0, 3, 2, 1], [-1, -3, 0.6, 0.5], [1, 2, 3, 4], [10, 2, -1, 5]])
        >>> sparsify24(x, "largest_abs_values_greedy")._sp24_to_dense()
        tensor([[ 4.0000,  3.0000,  0.0000,  0.0000],
                [ 0.0000, -3.0000,  0.6000,  0.0000],
                [ 0.0000,  0.0000,  3.0000,  4.0000],
                [10.0000,  0.0000,  0.0000,  5.0000]])
    """
    return _sparsified(x, algo, backend, *_slopes(gradient))


def sparsify24_ste(
    x: Tensor, algo: str = "", backend: str = BACKEND_CUTLASS, bw_mul0: float = 1.0, bw_mul1: float = 1.0
) -> Sparse24Tensor:
    """As :func:`sparsify24`, with a dense gradient.

    Args:
        bw_mul0: by what the gradients of pruned entries are multiplied.
        bw_mul1: by what those of kept entries are.

    Example:
        >>> x = torch.eye(4, requires_grad=True)
        >>> (sparsify24_ste(x, bw_mul0=0.5) @ torch.ones(4, 1)).sum().backward()
        >>> x.grad[0]
        tensor([1.0000, 1.0000, 0.5000, 0.5000])
    """
    return _sparsified(x, algo, backend, bw_mul0, bw_mul1)


def sparsify24_like(
    x: Tensor, pattern: Tensor, gradient: str = GRADIENT_SP24, backend: str = "", out_dense: bool | None = None
) -> Tensor:
    """x with those entries kept that another tensor keeps.

    Args:
        x: ``[M, N]``.
        pattern: a :class:`Sparse24Tensor` ``[M, N]``.
        gradient: as of :func:`sparsify24`.
        backend: ``"dense"`` for an ordinary tensor; the pattern's own if left out.
        out_dense: the same as ``backend="dense"``, where it is True.

    Raises:
        ValueError: a pattern that is no :class:`Sparse24Tensor`, or of another shape; a gradient that there is not.

    Example:
        >>> pattern = sparsify24(torch.eye(4))
        >>> sparsify24_like(torch.full((4, 4), 7.0), pattern, out_dense=True)[0]
        tensor([7., 7., 0., 0.])
    """
    if not isinstance(pattern, Sparse24Tensor):
        raise ValueError(f"pattern must be a Sparse24Tensor, but is a {type(pattern).__name__}")
    if x.shape != pattern.shape:
        raise ValueError(f"x has shape {list(x.shape)}, but the pattern {list(pattern.shape)}")
    x = dense(x) if isinstance(x, Sparse24Tensor) else x
    values = _pruned(x, pattern.threads_masks, *_slopes(gradient))
    if out_dense or backend == BACKEND_DENSE:
        return values
    return like(values, pattern, CLASSES[_known(backend)] if backend else type(pattern))


def _sparsified(x: Tensor, algo: str, backend: str, pruned: float, left: float) -> Sparse24Tensor:
    cls = CLASSES[_known(backend)]
    if isinstance(x, Sparse24Tensor):
        return x
    if x.dtype == torch.float32 and torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    keep = kept(x, algo)
    return made(_pruned(x, keep, pruned, left), keep, False, cls)


def _known(backend: str) -> str:
    if backend not in CLASSES:
        raise AssertionError(f"backend={backend!r} must be one of {list(CLASSES)}")
    return backend


def _slopes(gradient: str) -> tuple[float, float]:
    if gradient not in SLOPES:
        raise ValueError(f"gradient={gradient!r} must be one of {list(SLOPES)}")
    return SLOPES[gradient]


def _pruned(x: Tensor, keep: Tensor, pruned: float, left: float) -> Tensor:
    """x where it is kept, with these slopes; what is added to have them is zero."""
    if (pruned, left) == (0.0, 1.0):
        return torch.where(keep, x, 0)
    change = x - x.detach()
    return torch.where(keep, x.detach() + left * change, pruned * change)


def _has_cusparseLt() -> bool:
    return True
