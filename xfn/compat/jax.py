"""JAX's attention under its own name and arguments, on torch tensors."""

import torch
from torch import Tensor

from .. import bias as biases
from ..bias import Bias
from ..ops.attention import attention_with_lse


def dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Tensor | None = None,
    key_value_seq_lengths: Tensor | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | None = None,
    return_residual: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """As ``jax.nn.dot_product_attention``, but for rows that see no key: they are zeros, with a residual of −∞.

    Args:
        query: ``[B, T, N, H]`` or ``[T, N, H]``.
        key: ``[B, S, K, H]``; query head n reads key head n // (N // K).
        value: ``[B, S, K, V]``.
        bias: floating, added; broadcasts to ``[B, N, T, S]``.
        mask: boolean, True where attention is allowed; broadcasts to ``[B, N, T, S]``.
        scale: factor of q kᵀ; by default H ** -0.5.
        is_causal: whether query t sees the keys s ≤ t alone.
        query_seq_lengths: integers ``[B]``: queries from there on give zeros.
        key_value_seq_lengths: integers ``[B]``: keys from there on are hidden.
        local_window_size: how many keys are seen to the left and to the right: one number or two.
        implementation: ``"xla"``, ``"cudnn"`` or None, which are all the same here.
        return_residual: whether to return lse, too.

    Returns:
        ``[B, T, N, V]``, or that and lse ``[B, T, N]`` in key's dtype, through which no gradient flows.

    Raises:
        ValueError: shapes contradict each other, a mask is not boolean, or the implementation is none of JAX's.
        TypeError: dtypes differ.

    Example:
        >>> q, k, v = torch.randn(3, 2, 5, 4, 8)
        >>> dot_product_attention(q, k, v, is_causal=True, local_window_size=(2, 0)).shape
        torch.Size([2, 5, 4, 8])
    """
    if implementation not in (None, "xla", "cudnn"):
        raise ValueError(f"implementation is 'xla', 'cudnn' or None, but got {implementation!r}")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask is boolean, but got {mask.dtype}: pass what is added as bias")
    q, k, v = (t.unsqueeze(0) if t.dim() == 3 else t for t in (query, key, value))
    seen = _within(query_seq_lengths, key_value_seq_lengths, q, k)
    for dense in (bias, mask):
        seen = seen if dense is None else seen & biases.dense(dense)
    if is_causal:
        seen = seen.causal()
    if local_window_size is not None:
        seen = seen.local(*(local_window_size if isinstance(local_window_size, tuple) else (local_window_size,) * 2))
    out, lse = attention_with_lse(q, k, v, seen, scale=scale)
    residual = lse.mT.detach().to(key.dtype)
    if query.dim() == 3:
        out, residual = out.squeeze(0), residual.squeeze(0)
    return (out, residual) if return_residual else out


def _within(queries: Tensor | None, keys: Tensor | None, q: Tensor, k: Tensor) -> Bias:
    """What lengths ``[B]`` hide: query m sees the keys before the last one, none where it is past the queries' own."""
    if queries is None and keys is None:
        return Bias(())
    hi = torch.tensor(k.shape[-3], device=q.device) if keys is None else keys[:, None]
    if queries is not None:
        hi = torch.where(torch.arange(q.shape[-3], device=q.device) < queries[:, None], hi, 0)
    return biases.span(0, hi)
