"""Attention and its steps, on heads that are folded into the batch, under masks of any kind."""

import math

import torch
from torch import Tensor

from ....ops.attention import attention
from ....ops.softmax import softmax
from ....ops.sparse_attention import sparse_attention
from ....sparsity import Csr
from ..._drawn import dropping
from ._masks import Mask, taken
from ._sputnik_sparse import SparseCS


def scaled_query_key_softmax(q: Tensor, k: Tensor, att_mask: Mask = None) -> Tensor | SparseCS:
    """softmax(q kᵀ / √K + mask): ``[B, M, N]``, or sparse where the mask is.

    Args:
        q: ``[B, M, K]``.
        k: ``[B, N, K]``.
        att_mask: booleans that keep, numbers that are added, an ``AttentionMask`` or a ``SparseCS``.

    Example:
        >>> q = torch.ones(1, 2, 4)
        >>> scaled_query_key_softmax(q, q, torch.ones(2, 2).tril().bool())
        tensor([[[1.0000, 0.0000],
                 [0.5000, 0.5000]]])
    """
    return _softmax(_matmul_with_mask(q / math.sqrt(q.shape[-1]), k.mT, att_mask))


def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    att_mask: Mask = None,
    dropout: torch.nn.Module | None = None,
    block_size: int = 128,
    *,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """drop(softmax(q kᵀ / √K + mask)) v: ``[B, M, V]``, over the mask's entries where they are few.

    Args:
        q, k, v: ``[B, M, K]``, ``[B, N, K]`` and ``[B, N, V]``.
        att_mask: as of :func:`scaled_query_key_softmax`.
        dropout: a ``torch.nn.Dropout``, which drops as its mode says.
        block_size: of no consequence.
        key_padding_mask: booleans ``[B', N]``, True where a key is one; B' divides B.

    Example:
        >>> q = torch.ones(3, 2, 4)
        >>> scaled_dot_product_attention(q, q, q).shape
        torch.Size([3, 2, 4])
    """
    if dropout is not None and not isinstance(dropout, torch.nn.Dropout):
        raise TypeError(f"dropout is a torch.nn.Dropout, but got {type(dropout).__name__}")
    p = dropout.p if dropout is not None and dropout.training else 0.0
    key = dropping(p, q.device)
    mask = taken(att_mask, len(q), q.shape[-2], k.shape[-2], key_padding_mask)
    q, k, v = (t.unsqueeze(-2) for t in (q, k, v))
    if isinstance(mask, Csr):
        return sparse_attention(mask, q, k, v, p, key=key).squeeze(-2)
    mask = mask.to(q.dtype) if mask is not None and mask.is_floating_point() else mask
    return attention(q, k, v, mask, p, key=key).squeeze(-2)


def _create_random_sparsity(matrix: Tensor, sparsity: float, divisible_by: int = 4) -> Tensor:
    """``matrix [B, M, N]`` without a share of its entries, the same in all examples; how many are left, 4 divides."""
    assert matrix.dim() == 3, f"a matrix is [B, M, N], but got {list(matrix.shape)}"
    keep = (torch.rand(matrix.shape[1:], device=matrix.device) > sparsity).flatten()
    places = keep.nonzero().flatten()
    keep[places[len(places) - len(places) % divisible_by :]] = False
    return torch.where(keep.view(matrix.shape[1:]), matrix, 0).to(matrix.dtype)


def bmm(a: Tensor | SparseCS, b: Tensor) -> Tensor:
    """The product of a batch of matrices, the first of which may be sparse.

    Example:
        >>> bmm(SparseCS(torch.eye(2)), torch.ones(1, 2, 3)).shape
        torch.Size([1, 2, 3])
    """
    return a.spmm(b) if isinstance(a, SparseCS) else torch.matmul(a, b)


def _matmul_with_mask(a: Tensor, b: Tensor, mask: Mask) -> Tensor | SparseCS:
    """a b, with a mask: what it hides is −∞, or is not there."""
    if isinstance(mask, SparseCS):
        return mask.matmul_with_mask(a, b)
    logits, found = a @ b, taken(mask, len(a), a.shape[-2], b.shape[-1])
    if found is None:
        return logits
    if isinstance(found, Csr):
        return SparseCS.wrap(found, logits[:, found.to_mask().reshape(found.shape)])
    found = found.squeeze(1) if found.dim() == 4 else found
    return logits.masked_fill(~found, -torch.inf) if found.dtype == torch.bool else logits + found


def _softmax(a: Tensor | SparseCS, causal: bool = False) -> Tensor | SparseCS:
    """The softmax of each row, zeros where all is −∞."""
    if isinstance(a, SparseCS):
        return a.softmax()
    y = softmax(a)
    return torch.where((a == -torch.inf).all(-1, keepdim=True), 0, y)


def _apply_dropout(a: Tensor | SparseCS, dropout: torch.nn.Module | None) -> Tensor | SparseCS:
    if dropout is None:
        return a
    return SparseCS.wrap(a.csr, dropout(a.values)) if isinstance(a, SparseCS) else dropout(a)
