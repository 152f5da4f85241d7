"""merge_attentions: the attention to all keys, from those to each part of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ....ops.merge import merge_attentions as merged
from .attention import MaybeBias, memory_efficient_attention_partial
from .common import AttentionOp


def merge_attentions(
    attn_split: Tensor | Sequence[Tensor],
    lse_split: Tensor | Sequence[Tensor],
    write_lse: bool = True,
    output_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """lse = log Σ exp(lseᵢ) and out = Σ exp(lseᵢ − lse) outᵢ, with gradients through both.

    Args:
        attn_split: one ``[B, M, H, K]`` or ``[B, M, G, H, K]`` for each part, or all stacked in front.
        lse_split: as many ``[B, H, M]`` or ``[B, G, H, M]``.
        write_lse: whether lse is wanted.
        output_dtype: of out; by default that of the parts.

    Returns:
        ``(out, lse)``, or ``(out, None)``.

    Raises:
        ValueError: the parts contradict each other.

    Example:
        >>> q, k, v = torch.randn(3, 2, 6, 4, 8)
        >>> halves = [memory_efficient_attention_partial(q, k[:, n], v[:, n]) for n in (slice(0, 2), slice(2, 6))]
        >>> out, lse = merge_attentions(*zip(*halves))
        >>> out.shape
        torch.Size([2, 6, 4, 8])
    """
    outs, lses = list(attn_split), list(lse_split)
    for out, lse in zip(outs, lses, strict=False):
        if out.dim() not in (4, 5) or (out.shape[0], *out.shape[2:-1], out.shape[1]) != tuple(lse.shape):
            raise ValueError(
                f"a part is [B, M, H, K] with [B, H, M], or [B, M, G, H, K] with [B, G, H, M], "
                f"but got {list(out.shape)} with {list(lse.shape)}"
            )
    if not outs or any(out.shape != outs[0].shape for out in outs):
        raise ValueError(f"parts have one shape, but got {[list(out.shape) for out in outs]}")
    dtype = output_dtype or outs[0].dtype
    wide = torch.promote_types(dtype, outs[0].dtype)
    flat = [out.flatten(2, -2).to(wide) for out in outs], [lse.flatten(1, -2) for lse in lses]
    out, lse = merged(*flat)
    return out.reshape(outs[0].shape).to(dtype), lse.reshape(lses[0].shape) if write_lse else None


class Rearrange(Protocol):
    """A function of a tensor ``[B, M, ..., K]`` that does the same for any K."""

    def __call__(self, x: Tensor, /) -> Tensor: ...


@dataclass(eq=False)
class Partial:
    """The attention to a part of the keys, for :func:`merge_attentions_autograd` alone."""

    _attn: Tensor
    _lse: Tensor

    def is_bmghk(self) -> bool:
        """Whether its heads are in groups."""
        return self._attn.dim() == 5

    def apply(self, fn: Rearrange) -> "Partial":
        """With the batch, the queries or the heads sliced or rearranged, by a function of ``[B, M, (G,) H, K]``."""
        lse = fn(self._lse.movedim(-1, 1).unsqueeze(-1)).squeeze(-1).movedim(1, -1)
        return replace(self, _attn=fn(self._attn), _lse=lse)


def memory_efficient_attention_partial_autograd(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: MaybeBias = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: AttentionOp | None = None,
    output_dtype: torch.dtype | None = None,
) -> Partial:
    """As :func:`memory_efficient_attention_partial`, as one value.

    Example:
        >>> q, k, v = torch.randn(3, 2, 6, 4, 8)
        >>> part = memory_efficient_attention_partial_autograd(q, k, v)
        >>> merge_attentions_autograd(part.apply(lambda x: x[:, :3])).shape
        torch.Size([2, 3, 4, 8])
    """
    return Partial(
        *memory_efficient_attention_partial(query, key, value, attn_bias, p, scale, op=op, output_dtype=output_dtype)
    )


def merge_attentions_autograd(*partials: Partial, output_dtype: torch.dtype | None = None) -> Tensor:
    """The attention to the keys of all parts.

    Args:
        partials: as :func:`memory_efficient_attention_partial_autograd` returned them.
        output_dtype: of the output; by default that of the parts.

    Raises:
        ValueError: there are none, or they contradict each other.

    Example:
        >>> q, k, v = torch.randn(3, 2, 6, 4, 8)
        >>> merge_attentions_autograd(memory_efficient_attention_partial_autograd(q, k, v)).shape
        torch.Size([2, 6, 4, 8])
    """
    if not partials:
        raise ValueError("there is nothing to merge")
    return merge_attentions([p._attn for p in partials], [p._lse for p in partials], output_dtype=output_dtype)[0]
