"""Attention for models of Hugging Face's transformers, by ``attn_implementation="xfn"``."""

from typing import Any

import torch
from torch import Tensor

from .. import bias
from .._core.kinds import wide
from ..bias import Bias
from ..ops.attention import attention_with_lse
from ._drawn import dropping

SAID_ALREADY = {
    "cache_position", "deterministic", "max_length_k", "max_length_q", "num_items_in_batch", "output_hidden_states",
    "output_router_logits", "position_ids", "use_cache",
}  # fmt: skip
"""What models pass on to every attention, and masks and lengths have said, or others ask of them."""


def register(name: str = "xfn") -> None:
    """Make ``attn_implementation=name`` mean this library's attention, in every model that can choose one.

    Masks are those that models make for torch's attention: None where the model is causal and nothing is hidden, else
    boolean.

    Args:
        name: what the implementation is called; another of the same name is replaced.

    Example:
        >>> from importlib.util import find_spec
        >>> if find_spec("transformers"):
        ...     register()  # and then AutoModel.from_config(config, attn_implementation="xfn")
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, sdpa_mask)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | Tensor | None = None,
    is_causal: bool | None = None,
    *,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What a model's layer calls; there is no list of weights in what it returns.

    Args:
        module: the layer. Its ``is_causal`` counts where the argument is None.
        query: ``[batch, H, M, K]``.
        key: ``[batch, G, N, K]``; query head h reads key head h // (H // G).
        value: ``[batch, G, N, V]``.
        attention_mask: broadcasts to ``[batch, H, M, N]``: boolean, or floating, which is added. It holds what a causal
            layer and a window hide; without one they are hidden here.
        dropout: probability of dropping a weight, drawn from torch's generator.
        scaling: factor of q kᵀ; by default K ** -0.5. Gradients flow into a tensor.
        is_causal: whether query m sees the keys n ≤ m alone, where there is more than one and no mask.
        sliding_window: how many keys up to its own a query of a causal layer sees.
        softcap: logits s become softcap · tanh(s / softcap), before anything is added. They take O(M N) memory.
        s_aux: logits ``[H]`` of a sink, a key of each head without a value: out · σ(lse − s_aux).
        position_bias: broadcasts to ``[batch, H, M, N]``, and is added.
        cu_seq_lens_q, cu_seq_lens_k: where sequences that share a row begin and end; each sees itself alone.
        others: what asks nothing of an attention.

    Returns:
        ``([batch, M, H, V], None)``.

    Raises:
        TypeError: a keyword that is not honoured.
        ValueError: weights are asked for, or a window whose place is not known.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 5, 8)
        >>> attend(torch.nn.Module(), q, k, v, is_causal=True, s_aux=torch.zeros(4))[0].shape
        torch.Size([2, 5, 4, 8])
    """
    packed = cu_seq_lens_q is not None
    _refuse(others, packed)
    M, N = query.shape[-2], key.shape[-2]
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal) and M > 1
    seen = bias.segments(*_lengths(cu_seq_lens_q, cu_seq_lens_k)) if packed else Bias(())
    if attention_mask is not None:
        seen = seen & bias.dense(attention_mask[..., :N])
    elif sliding_window is not None and sliding_window < N and not causal:
        raise ValueError(f"a window of {sliding_window} keys has no place among {N} without an attention_mask")
    elif causal:
        seen = seen.causal() if sliding_window is None else seen.local(sliding_window - 1, 0)
    if position_bias is not None:
        seen = seen + bias.dense(position_bias[..., :N])

    q, k, v = (t.transpose(-3, -2) for t in (query, key, value))
    if isinstance(scaling, Tensor):
        q, scaling = q * scaling, 1.0
    if softcap is not None:
        seen, q, k, scaling = seen + bias.dense(_capped(q, k, scaling, softcap)), q[..., :1], k[..., :1], 0.0
    out, lse = attention_with_lse(q, k, v, seen, dropout, scaling, key=dropping(dropout, q.device))
    if s_aux is not None:
        share = torch.sigmoid(lse - s_aux.to(lse.dtype)[:, None])  # [batch, H, M]
        out = (out * share.mT.unsqueeze(-1)).to(out.dtype)
    return out.contiguous(), None


def _refuse(others: dict[str, Any], packed: bool) -> None:
    """Say what is asked for and not done."""
    if others.pop("output_attentions", False):
        raise ValueError("weights are not kept here: load the model with attn_implementation='eager' to see them")
    allowed = SAID_ALREADY | {"seq_idx"} if packed else SAID_ALREADY
    if unknown := sorted(name for name, value in others.items() if value is not None and name not in allowed):
        raise TypeError(f"this attention does not honour {', '.join(unknown)}: use another attn_implementation")


def _lengths(queries: Tensor | None, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    """How long sequences are, from where they begin and end."""
    assert queries is not None
    return queries.diff(), (queries if keys is None else keys).diff()


def _capped(q: Tensor, k: Tensor, scaling: float | None, softcap: float) -> Tensor:
    """Logits ``[..., H, M, N]`` between −softcap and softcap."""
    dtype, groups = wide(q.dtype), q.shape[-2] // k.shape[-2]
    scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
    q, k = q.to(dtype) * scaling, k.to(dtype).repeat_interleave(groups, -2)
    return softcap * torch.tanh(torch.einsum("...mhk,...nhk->...hmn", q, k) / softcap)
