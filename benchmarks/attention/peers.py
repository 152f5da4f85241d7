"""Other attentions: torch's own, torch's compiled flex_attention, and softmax in plain torch; all on [..., H, S, D]."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Attend = Callable[..., Tensor]
Index = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

NO_FLEX = "--no-flex leaves flex_attention out"


def sdpa(mask: Tensor | None = None, causal: bool = False, p: float = 0.0) -> Attend:
    """torch's own, on whatever kernel it chooses; a bias that is differentiated comes after v."""

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = mask) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, bias, p, causal, enable_gqa=q.shape[-3] != k.shape[-3])

    return attend


def on_math(attend: Attend) -> Attend:
    """torch's own on plain torch ops, which can be differentiated in every way."""
    return on(SDPBackend.MATH, attend)


def on(kernel: SDPBackend, attend: Attend) -> Attend:
    """torch's own on one of its kernels; where that cannot, it raises."""

    def through(*tensors: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return attend(*tensors)

    return through


def as_float32(attend: Attend) -> Attend:
    """What one can do about a dtype that is slow."""
    return lambda q, k, v: attend(q.float(), k.float(), v.float()).to(q.dtype)


def softmax(mask: Tensor | None = None, p: float = 0.0) -> Attend:
    """Plain torch at its best: no copy of shared heads, no copy of the logits but softmax's own.

    Args:
        mask: True where attention is allowed, or a float to add.
    """
    hidden = ~mask if mask is not None and mask.dtype == torch.bool else None
    added = None if hidden is not None else mask

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = added) -> Tensor:
        (H, M), (G, N) = q.shape[-3:-1], k.shape[-3:-1]
        q = (q * q.shape[-1] ** -0.5).reshape(*q.shape[:-3], G, H // G * M, q.shape[-1])
        s = (q @ k.mT).reshape(*q.shape[:-3], H, M, N)
        if bias is not None:
            s = s + bias
        if hidden is not None:
            s = s.masked_fill_(hidden, -torch.inf)
        weights = s.softmax(-1)
        if p:
            weights = F.dropout(weights, p)
        return (weights.reshape(*q.shape[:-1], N) @ v).reshape(*q.shape[:-3], H, M, v.shape[-1])

    return attend


def flex(
    M: int,
    N: int,
    keep: Index | None = None,
    score: Callable[..., Tensor] | None = None,
    block_mask: BlockMask | None = None,
    device: str = "cpu",
    code: bool = True,
) -> Attend:
    """flex_attention, compiled when first called, for these shapes alone; as it is without ``code``.

    Args:
        keep: (b, h, m, n) -> where attention is allowed.
        score: (s, b, h, m, n) -> the logits to use.
        block_mask: instead of keep.
    """

    @cache
    def compiled() -> tuple[Any, Any]:
        torch.compiler.reset()  # the rows before were compiled for other shapes
        block = create_block_mask(keep, None, None, M, N, device=device) if keep else block_mask
        return torch.compile(flex_attention, dynamic=False) if code else flex_attention, block

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        function, block = compiled()
        grouped = q.shape[1] != k.shape[1]
        return function(q, k, v, score_mod=score, block_mask=block, enable_gqa=grouped)  # type: ignore[no-any-return]

    return attend


def earlier(b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
    return n <= m
