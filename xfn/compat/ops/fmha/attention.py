"""memory_efficient_attention and its parts, under their old names, on this library's attention.

    out = drop(softmax(scale · q kᵀ + attn_bias)) v        lse = log Σ exp(scale · q kᵀ + attn_bias)

Tensors are BMK, BMHK or BMGHK (see :mod:`.fmha.common`). A query that sees no key gives zeros.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...._core.errors import Unsupported
from ....ops._calls import checked
from ....ops.attention import ATTENTION, attention_with_lse
from ..._drawn import drawn
from .attn_bias import AttentionBias
from .common import AttentionBwOpBase, AttentionFwOpBase, AttentionOp, Inputs, backend_of

MaybeBias = Tensor | AttentionBias | None


def memory_efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: MaybeBias = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: AttentionOp | None = None,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """softmax(scale · q kᵀ + attn_bias) v, with its gradients to any order, those of a tensor bias too.

    Args:
        query: ``[B, Mq, H, K]``, ``[B, Mq, K]`` or ``[B, Mq, G, H, K]``.
        key: the same with Mk; heads that are one are expanded, by the caller.
        value: the same with Mk and Kv.
        attn_bias: a tensor ``[B, H, Mq, Mk]``, which is added, or an :class:`AttentionBias`.
        p: probability of dropping a weight; drawn from torch's own generator.
        scale: factor of q kᵀ; by default K ** -0.5.
        op: operators for the value and the gradient, either of which may be None.
        output_dtype: of the output; a wider one than that of the query is also computed in.

    Returns:
        ``[B, Mq, H, Kv]``, or in the format of the query.

    Raises:
        ValueError: arguments that contradict each other, or ``op`` cannot run them; it says why.
        NotImplementedError: no operator can; it says why of each.

    Example:
        >>> q, k, v = torch.randn(3, 2, 5, 4, 8)
        >>> memory_efficient_attention(q, k, v, p=0.2).shape
        torch.Size([2, 5, 4, 8])
    """
    inputs = Inputs(query, key, value, attn_bias, p, scale, output_dtype)
    return inputs.restored(_run(inputs, op)[0])


def memory_efficient_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: MaybeBias = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: type[AttentionFwOpBase] | None = None,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """As :func:`memory_efficient_attention`, with one operator, of the value.

    Example:
        >>> q, k, v = torch.randn(3, 2, 5, 8)
        >>> memory_efficient_attention_forward(q, k, v).shape
        torch.Size([2, 5, 8])
    """
    return memory_efficient_attention(query, key, value, attn_bias, p, scale, op=(op, None), output_dtype=output_dtype)


def memory_efficient_attention_forward_requires_grad(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: MaybeBias = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: type[AttentionFwOpBase] | None = None,
    output_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`memory_efficient_attention` without dropout, and lse, ``[B, H, Mq]`` or ``[B, G, H, Mq]``.

    Example:
        >>> q, k, v = torch.randn(3, 2, 5, 4, 8)
        >>> out, lse = memory_efficient_attention_forward_requires_grad(q, k, v)
        >>> lse.shape
        torch.Size([2, 4, 5])
    """
    _undropped(p)
    inputs = Inputs(query, key, value, attn_bias, p, scale, output_dtype)
    out, lse = _run(inputs, op)
    return inputs.restored(out), inputs.restored_lse(lse)


def memory_efficient_attention_partial(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: MaybeBias = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: type[AttentionFwOpBase] | AttentionOp | None = None,
    output_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`memory_efficient_attention_forward_requires_grad`, to be merged: the output is float32 by default.

    Example:
        >>> q, k, v = torch.randn(3, 2, 5, 4, 8, dtype=torch.float16)
        >>> memory_efficient_attention_partial(q, k, v)[0].dtype
        torch.float32
    """
    _undropped(p)
    dtype = output_dtype or torch.promote_types(query.dtype, torch.float32)
    inputs = Inputs(query, key, value, attn_bias, p, scale, dtype, is_partial=True)
    out, lse = _run(inputs, op)
    return inputs.restored(out), inputs.restored_lse(lse)


def memory_efficient_attention_backward(
    grad: Tensor,
    output: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: MaybeBias = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: type[AttentionBwOpBase] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the query, the key and the value.

    With the output and lse of an attention to more keys, they are those that this part of the keys has in it.

    Args:
        grad: the output's gradient.
        output, lse: as :func:`memory_efficient_attention_forward_requires_grad` returned them.
        query, key, value, attn_bias, p, scale: as it was given them.
        op: the operator of the gradient.

    Returns:
        Three tensors, in the shapes of query, key and value.

    Raises:
        ValueError, NotImplementedError: as of :func:`memory_efficient_attention`.

    Example:
        >>> q, k, v = torch.randn(3, 2, 5, 4, 8)
        >>> out, lse = memory_efficient_attention_forward_requires_grad(q, k, v)
        >>> dq, dk, dv = memory_efficient_attention_backward(torch.ones_like(out), out, lse, q, k, v)
        >>> dk.shape
        torch.Size([2, 5, 4, 8])
    """
    _undropped(p)
    inputs = Inputs(query, key, value, attn_bias, p, scale)
    inputs.validate_inputs()
    whole = (*query.shape[:-1], value.shape[-1])
    if tuple(grad.shape) != whole or tuple(output.shape) != whole:
        raise ValueError(f"grad {list(grad.shape)} and output {list(output.shape)} must both be {list(whole)}")
    heads = query.shape[2:-1] if query.dim() > 3 else (1,)
    if tuple(lse.shape) != (query.shape[0], *heads, query.shape[1]):
        raise ValueError(f"lse has shape {list(lse.shape)}, but wants {[query.shape[0], *heads, query.shape[1]]}")

    def normal(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return replace(inputs, query=q, key=k, value=v).tensors()

    qkv, pull = torch.func.vjp(normal, query, key, value)  # type: ignore[misc]
    q, k, v = qkv
    operands, options = checked(q, k, v, inputs.bias(q.shape[1], k.shape[1]), 0.0, scale, None)
    out, dout = (t.to(q.dtype).reshape(*q.shape[:-1], v.shape[-1]) for t in (output, grad))
    found = ATTENTION.backward(
        operands[:5],
        operands[5:],
        (out, lse.flatten(1, -2)),
        (dout, None),
        options=(*options.values(), backend_of(op)),
        needs=(True, True, True, False, False),
    )
    dq, dk, dv = pull(tuple(found[:3]))
    return dq, dk, dv


def _run(inputs: Inputs, op: Any) -> tuple[Tensor, Tensor]:
    """out ``[B, M, heads, Kv]`` and lse ``[B, heads, M]``."""
    inputs.validate_inputs()
    q, k, v = inputs.tensors()
    bias = inputs.bias(q.shape[1], k.shape[1])
    p, backend = inputs.p, backend_of(op)
    key = drawn(q.device) if 0 < p < 1 else None
    try:
        out, lse = attention_with_lse(q, k, v, bias, 0.0 if p == 1 else p, inputs.scale, key=key, backend=backend)
    except Unsupported as error:
        if backend is None:
            raise
        raise ValueError(str(error)) from error
    return (out.masked_fill(torch.ones((), dtype=torch.bool, device=out.device), 0) if p == 1 else out), lse


def _undropped(p: float) -> None:
    if p:
        raise NotImplementedError(f"p={p} drops weights, which only memory_efficient_attention does")
