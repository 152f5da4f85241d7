"""torch's flex_attention under its own name, and what its masks are here.

A ``BlockMask`` becomes a :class:`xfn.Layout` where it can, and a boolean mask where it differs between examples.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask, create_mask

from .. import bias
from .._core.tables import BLOCKS
from ..bias import Bias
from ..layout import Layout
from ..layout import from_block_mask as from_block_mask
from ..layout import to_block_mask as to_block_mask
from ..layout.flex import live
from ..ops.attention import attention_with_lse
from ..ops.blocksparse import blocksparse_attention_with_lse

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def from_mask_mod(
    mask_mod: MaskMod, M: int, N: int, B: int | None = None, H: int | None = None,
    device: torch.device | str = "cpu",
) -> Bias:  # fmt: skip
    """What a ``mask_mod`` keeps, as a bias: every one of the M × N answers, for each example and head that is asked of.

    Args:
        mask_mod: ``mask_mod(b, h, m, n)`` of integers that are tensors, True where query m sees key n.
        M: queries.
        N: keys.
        B: examples; by default one answer serves all.
        H: heads; by default one answer serves all.
        device: of the bias.

    Example:
        >>> from_mask_mod(lambda b, h, m, n: n <= m, 2, 3).materialize(2, 3)
        tensor([[[[0., -inf, -inf],
                  [0., 0., -inf]]]])
    """
    return bias.dense(create_mask(mask_mod, B, H, M, N, device=str(device)))


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Any = None,
    block_mask: BlockMask | Layout | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: Any = None,
    *,
    return_aux: AuxRequest | None = None,
) -> Any:
    """As ``torch.nn.attention.flex_attention.flex_attention`` without a ``score_mod``, under every transform.

    Args:
        query: ``[B, H, M, K]``, or without B.
        key: ``[B, G, N, K]``.
        value: ``[B, G, N, V]``.
        score_mod: None: what is added to logits is a bias, and that of :func:`xfn.attention`.
        block_mask: which keys are seen. What :func:`from_block_mask` makes of one is taken too, and need not be made
            again in every call.
        scale: factor of q kᵀ; by default K ** -0.5.
        enable_gqa: whether G may be less than H.
        return_lse: whether to return lse ``[B, H, M]``, too.
        kernel_options: of no use here.
        return_aux: what to return besides, of which there is lse.

    Returns:
        ``[B, H, M, V]``, or that and lse, or that and an ``AuxOutput``.

    Raises:
        NotImplementedError: a ``score_mod``, or more to return than there is.
        ValueError: lengths or heads that contradict each other.

    Example:
        >>> from torch.nn.attention.flex_attention import create_block_mask
        >>> earlier = create_block_mask(lambda b, h, m, n: n <= m, None, None, 32, 32, "cpu", BLOCK_SIZE=16)
        >>> q, k, v = torch.randn(3, 2, 4, 32, 8)
        >>> torch.func.jvp(lambda q: flex_attention(q, k, v, block_mask=earlier), (q,), (q,))[1].shape
        torch.Size([2, 4, 32, 8])
    """
    if score_mod is not None:
        raise NotImplementedError(
            "a score_mod is a function that no derivative is known of: write xfn.attention(q, k, v, bias), whose bias "
            "may be any tensor, ALiBi's slopes, bounds, and their sums"
        )
    if return_aux is not None and return_aux.max_scores:
        raise NotImplementedError("max_scores are not kept: ask for lse")
    if query.shape[-3] != key.shape[-3] and not enable_gqa:
        raise ValueError(f"query and key have {query.shape[-3]} and {key.shape[-3]} heads: write enable_gqa=True")
    q, k, v = (t.transpose(-3, -2) for t in (query, key, value))
    seen = _seen(block_mask) if isinstance(block_mask, BlockMask) else block_mask
    if isinstance(seen, Layout):
        out, lse = blocksparse_attention_with_lse(seen, q, k, v, scale=scale)
    else:
        out, lse = attention_with_lse(q, k, v, seen, scale=scale)
    out = out.transpose(-3, -2)
    if return_aux is not None:
        return out, AuxOutput(lse=lse if return_aux.lse else None)
    return (out, lse) if return_lse else out


def _seen(block_mask: BlockMask) -> Layout | Bias:
    """A block mask as a layout, or, where it is none, every one of its answers."""
    size = tuple(block_mask.BLOCK_SIZE)
    B, H, *_ = block_mask.kv_num_blocks.shape
    if B == 1 and size[0] == size[1] and size[0] in BLOCKS:
        return from_block_mask(block_mask)
    M, N = block_mask.seq_lengths
    partial, full = (
        tiles.repeat_interleave(size[0], -2).repeat_interleave(size[1], -1)[..., :M, :N] for tiles in live(block_mask)
    )
    kept = create_mask(block_mask.mask_mod, B, H, M, N, device=str(partial.device))
    return bias.dense(full | (partial & kept))
