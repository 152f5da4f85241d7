"""Biases of every class for tests, attention in float32 to compare with, and caches in pages."""

import math
from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from .ops.fmha import attn_bias as b
from .ops.fmha.common import AttentionOpBase

PADDED = (b.BlockDiagonalPaddedKeysMask, b.PagedBlockDiagonalPaddedKeysMask)
GAPPY = (b.BlockDiagonalGappyKeysMask, b.PagedBlockDiagonalGappyKeysMask)
PAGED = (b.PagedBlockDiagonalPaddedKeysMask, b.PagedBlockDiagonalGappyKeysMask)


def create_attn_bias(
    bias_type: Any,
    batch_size: int,
    num_heads: int,
    num_heads_groups: int,
    q_len: int,
    kv_len: int,
    device: Any,
    dtype: torch.dtype,
    requires_grad: bool,
    fmt: str,
    op: type[AttentionOpBase] | None = None,
    page_size: int | None = None,
) -> Any:
    """A bias of a class, for ``batch_size`` times so many queries and keys; lengths are drawn, from the sizes alone.

    Args:
        bias_type: a class, or ``type(None)``, or ``torch.Tensor``, which hides most keys from most queries of one head.
        batch_size, num_heads, num_heads_groups, q_len, kv_len: of the tensors.
        device, dtype, requires_grad: of a dense bias.
        fmt: ``"BMK"``, ``"BMHK"`` or ``"BMGHK"``.
        op: changes nothing.
        page_size: of a paged bias.

    Raises:
        ValueError: a class that is not known, or that wants more keys than queries and has not.

    Example:
        >>> from xfn.compat.ops.fmha import BlockDiagonalMask
        >>> bias = create_attn_bias(BlockDiagonalMask, 3, 1, 1, 8, 5, "cpu", torch.float32, False, "BMHK")
        >>> bias.materialize((24, 15)).shape
        torch.Size([24, 15])
    """
    if bias_type is None or bias_type is type(None):
        return None
    r = Random(f"{batch_size}-{q_len}-{kv_len}-{dtype}-{fmt}")
    window = r.choice((3, 128, 300))
    if bias_type in (Tensor, b.LowerTriangularMaskWithTensorBias):
        dense = _dense((batch_size, num_heads_groups, num_heads, q_len, kv_len), fmt, device, dtype)
        if bias_type is Tensor:
            first = dense[(0,) * (dense.dim() - 2)]
            first[: q_len - 1, : kv_len - 1] = -math.inf
        dense.requires_grad_(requires_grad)
        return dense if bias_type is Tensor else bias_type(dense)
    if bias_type in (b.LowerTriangularMask, b.LowerTriangularFromBottomRightMask):
        return bias_type()
    if bias_type is b.LowerTriangularFromBottomRightLocalAttentionMask:
        return bias_type(window)
    if bias_type is b.LocalAttentionFromBottomRightMask:
        return bias_type(r.randint(0, 5), r.randint(0, 5))
    if fmt == "BMK" or not issubclass(bias_type, (b.BlockDiagonalMask, *PADDED, *GAPPY)):
        raise ValueError(f"{bias_type.__name__} is not known, or not for {fmt}")
    if issubclass(bias_type, b.BlockDiagonalMask):
        return _diagonal(bias_type, r, batch_size, q_len, kv_len, window)
    made = _slotted(bias_type, r, batch_size, q_len, kv_len, window, page_size or 1)
    return made if device is None else made.to(device)


def _dense(shape: Sequence[int], fmt: str, device: Any, dtype: torch.dtype) -> Tensor:
    """Its rows start at multiples of eight."""
    B, G, H, M, N = (shape[0] * shape[2], 1, 1, *shape[3:]) if fmt == "BMK" else shape
    dense = 3 * torch.randn(B, G, H, M, N + -N % 8, device=device, dtype=dtype)[..., :N]
    return dense if fmt == "BMGHK" else dense[:, 0] if fmt == "BMHK" else dense[:, 0, 0]


def _diagonal(bias_type: Any, r: Random, B: int, M: int, N: int, window: int) -> Any:
    """A bias of sequences back to back."""
    bottom = issubclass(bias_type, b.BlockDiagonalCausalFromBottomRightMask)
    if bottom and N < M:
        raise ValueError(f"{bias_type.__name__} wants a key for each query, but {N} < {M}")
    shorter = _shares(r, B * min(M, N), B)
    longer = [n + more for n, more in zip(shorter, _shares(r, B * abs(N - M), B, least=0), strict=True)]
    q, k = (shorter, longer) if M <= N else (longer, shorter)
    made = b.BlockDiagonalMask.from_seqlens(q, k)
    window = max([window, *(m - n + 1 for m, n in zip(q, k, strict=True))])
    if bias_type is b.BlockDiagonalCausalMask:
        return made.make_causal()
    if bias_type is b.BlockDiagonalCausalFromBottomRightMask:
        return made.make_causal_from_bottomright()
    if bias_type is b.BlockDiagonalCausalLocalAttentionMask:
        return made.make_local_attention(window)
    return made.make_local_attention_from_bottomright(window) if bottom else made


def _slotted(bias_type: Any, r: Random, B: int, M: int, N: int, window: int, page: int) -> Any:
    """A bias of keys that have more room than there are of them."""
    if M > N and bias_type is not b.BlockDiagonalGappyKeysMask:
        raise ValueError(f"{bias_type.__name__} wants a key for each query, but {N} < {M}")
    q = _shares(r, B * M, B, most=max(M, N))
    k = [r.randint(min(n, N), N) for n in q]
    paged = issubclass(bias_type, PAGED)
    room = -(-N // page) * page
    tables = torch.tensor(r.sample(range(B * room // page), B * room // page), dtype=torch.int32).reshape(B, -1)
    if issubclass(bias_type, PADDED):
        if paged:
            return bias_type.from_seqlens(q, k, tables, page)
        if bias_type is b.BlockDiagonalCausalLocalAttentionPaddedKeysMask:
            return bias_type.from_seqlens_local(q, N, k, min(window, *k))
        if bias_type is b.BlockDiagonalLocalAttentionPaddedKeysMask:
            return bias_type.from_seqlens_local(q, N, k, window, window)
        return bias_type.from_seqlens(q_seqlen=q, kv_padding=N, kv_seqlen=k)
    starts = [r.randint(0, room - n) if paged else i * N + r.randint(0, N - n) for i, n in enumerate(k)]
    if paged:
        return bias_type.from_seqlens(q, starts, k, tables, page)
    return bias_type.from_seqlens(q_seqlen=q, kv_seqstarts=[*starts, B * N], kv_seqlen=k)


def _shares(r: Random, total: int, count: int, least: int = 1, most: int | None = None) -> list[int]:
    """Numbers that sum up to a total, none of them smaller than one bound or larger than another."""
    shares: list[int] = []
    for left in range(count - 1, -1, -1):
        rest = total - sum(shares)
        low = max(least, rest - left * (total if most is None else most))
        shares.append(rest if not left else r.randint(low, min(rest - left * least, total if most is None else most)))
    return shares


def ref_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_bias: Any = None,
    drop_mask: Tensor | None = None,
    p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attention by its formula, in float32.

    Args:
        q, k, v: BMK, BMHK or BMGHK.
        attn_bias: as of :func:`xfn.compat.ops.memory_efficient_attention`.
        drop_mask: 1 for the weights that are kept and 0 for the others, ``[..., M, N]``.
        p: how many are dropped.
        scale: of the products; one over the root of K if left out.

    Example:
        >>> ref_attention(*torch.randn(3, 2, 5, 4, 8)).shape
        torch.Size([2, 5, 4, 8])
    """
    heads = q.shape[2:-1]
    q, k, v = (t.float().reshape(*t.shape[:2], -1, t.shape[-1]) for t in (q, k, v))
    logits = torch.einsum("bmhk,bnhk->bhmn", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if isinstance(attn_bias, b.LowerTriangularMaskWithTensorBias):
        hidden = b.LowerTriangularMask().materialize(tuple(logits.shape), device=q.device)
        logits = logits + hidden + attn_bias.tensor.float().reshape(-1, logits.shape[1], *logits.shape[2:])
    elif isinstance(attn_bias, b.AttentionBias):
        logits = logits + attn_bias.materialize(tuple(logits.shape), device=q.device)
    elif attn_bias is not None:
        logits = logits + attn_bias.float().reshape(-1, logits.shape[1], *logits.shape[2:])
    weights = logits.softmax(-1)
    if drop_mask is not None:
        weights = weights * drop_mask.reshape(-1, weights.shape[1], *weights.shape[2:]) / (1 - p)
    return torch.einsum("bhmn,bnhv->bmhv", weights, v).reshape(*q.shape[:2], *heads, v.shape[-1])


def ref_attention_bmhk(q: Tensor, k: Tensor, v: Tensor, attn_bias: Any, scale: float | None = None) -> Tensor:
    """As :func:`ref_attention`, of BMHK."""
    return ref_attention(q, k, v, attn_bias, scale=scale)


def pack_kv_cache(
    cache_k: Tensor, cache_v: Tensor, kv_seqlens: Sequence[int], BLOCK_N: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The table of pages, and caches ``[B, room, H, K]`` as pages of ``BLOCK_N`` tokens, one behind the other.

    Example:
        >>> tables, k, v = pack_kv_cache(*torch.randn(2, 2, 6, 1, 4), [3, 5], 2)
        >>> tables, k.shape
        (tensor([[0, 1, 2],
                [2, 3, 4]], dtype=torch.int32), torch.Size([1, 10, 1, 4]))
    """
    used = [-(-n // BLOCK_N) for n in kv_seqlens]
    first = torch.tensor([sum(used[:i]) for i in range(len(used))], dtype=torch.int32, device=cache_k.device)
    pages = torch.arange(-(-cache_k.shape[1] // BLOCK_N), dtype=torch.int32, device=cache_k.device)
    packed = []
    for cache in (cache_k, cache_v):
        store = cache.new_empty(sum(used) * BLOCK_N, *cache.shape[2:])
        for i, n in enumerate(kv_seqlens):
            start = int(first[i]) * BLOCK_N
            store[start : start + n] = cache[i, :n]
        packed.append(store[None])
    return first[:, None] + pages, packed[0], packed[1]
