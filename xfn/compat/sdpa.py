"""torch's own attention under its own name, and a scope in which every caller of it gets this one.

    out = drop(softmax(scale · q kᵀ + attn_mask)) v     query [..., H, M, K]  key [..., G, N, K]  value [..., G, N, V]

A query that sees no key gives zeros, as torch's does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import CausalBias, CausalVariant
from torch.overrides import TorchFunctionMode

from .. import bias
from .._core.kinds import autocast, check_tensors
from ..bias import Bias
from ..ops.attention import attention
from ._drawn import dropping

TORCHS: Callable[..., Tensor] = F.scaled_dot_product_attention


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As ``torch.nn.functional.scaled_dot_product_attention``, and differentiable to any order, in both modes.

    Args:
        query: ``[..., H, M, K]``, or ``[M, K]``.
        key: ``[..., H, N, K]``; batch and heads broadcast.
        value: ``[..., H, N, V]``.
        attn_mask: broadcasts to ``[..., H, M, N]``: boolean, True where attention is allowed, or floating, which is
            added, or what ``torch.nn.attention.bias`` makes.
        dropout_p: probability of dropping a weight, whether a model is in training or not; drawn from torch's
            generator, one key a call.
        is_causal: whether query m sees the keys n ≤ m alone.
        scale: factor of q kᵀ; by default K ** -0.5.
        enable_gqa: whether key and value may have fewer heads, which divide H.

    Returns:
        ``[..., H, M, V]``.

    Raises:
        RuntimeError: arguments that contradict each other.
        TypeError: what is no tensor, or a scale that is one.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 5, 8)
        >>> grad = torch.func.grad(lambda q: scaled_dot_product_attention(q, k, v, is_causal=True).sum())
        >>> torch.func.jvp(grad, (q,), (q,))[1].shape
        torch.Size([2, 4, 5, 8])
    """
    check_tensors({"query": query, "key": key, "value": value})
    q, k, v = autocast(query, key, value)
    if wrong := _wrong(q, k, v, attn_mask, is_causal):
        raise RuntimeError(wrong)
    matrices = max(q.dim(), k.dim(), v.dim()) == 2
    q, k, v = (t if t.dim() > 2 else t.unsqueeze(0) for t in (q, k, v))
    q, k, v = _headed(q, k, v, enable_gqa)
    seen = bias.causal() if is_causal else _seen(attn_mask)
    p = 0.0 if dropout_p == 1 else dropout_p
    q, k, v = (t.transpose(-3, -2) for t in (q, k, v))
    try:
        out = attention(q, k, v, seen, p, scale, key=dropping(p, q.device)).transpose(-3, -2)
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    out = out * 0 if dropout_p == 1 else out
    return out.squeeze(0) if matrices else out


def _wrong(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> str:
    """What torch would refuse, and this library's attention would not, or not as an error of this kind."""
    if q.is_nested or k.is_nested or v.is_nested:
        return "nested tensors are not taken: write xfn.bias.pack, which joins sequences and keeps them apart"
    if min(t.dim() for t in (q, k, v)) < 2:
        return f"query, key and value are matrices at least, but have {q.dim()}, {k.dim()} and {v.dim()} dims"
    if not q.dtype == k.dtype == v.dtype:
        return f"query, key and value have one dtype, but are {q.dtype}, {k.dtype} and {v.dtype}"
    if mask is None:
        return ""
    if is_causal:
        return "is_causal=True is a mask of its own: pass no attn_mask, or one that is causal too"
    if mask.dim() < 2:
        return f"attn_mask is [M, N] at least, but is {list(mask.shape)}"
    if mask.dtype not in (torch.bool, torch.float32, q.dtype):
        return f"attn_mask is boolean, float32 or of the query's {q.dtype}, but is {mask.dtype}"
    return ""


def _headed(q: Tensor, k: Tensor, v: Tensor, grouped: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The same, with heads that this library's attention takes: as many of values as of keys, and they divide H."""
    H, G, X = (t.shape[-3] for t in (q, k, v))
    if grouped:
        if not G or not X or H % G or H % X:
            raise RuntimeError(f"heads of key and value divide those of the query, but there are {G}, {X} and {H}")
        return (q, k, v) if G == X else (q, k.repeat_interleave(H // G, -3), v.repeat_interleave(H // X, -3))
    if H == G == X:
        return q, k, v
    if len({H, G, X} - {1}) > 1:
        raise RuntimeError(f"query, key and value have {H}, {G} and {X} heads: write enable_gqa=True for groups")
    spread = [t.expand(*t.shape[:-3], max(H, G, X), *t.shape[-2:]) for t in (q, k, v)]
    return (spread[0], k, v) if G == X else (spread[0], spread[1], spread[2])


def _seen(mask: Tensor | None) -> Bias | Tensor | None:
    """What torch's masks hide and add."""
    if isinstance(mask, CausalBias):
        return bias.causal("bottom-right" if mask.variant == CausalVariant.LOWER_RIGHT else "top-left")
    return mask


class _Mode(TorchFunctionMode):
    """Calls of torch's function by whatever name it was imported under."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (scaled_dot_product_attention if func is TORCHS else func)(*args, **(kwargs or {}))


class _Scopes:
    """How many scopes are open, and what was there before the first."""

    def __init__(self) -> None:
        self.lock, self.open = Lock(), 0

    def enter(self) -> None:
        with self.lock:
            self.open += 1
            if self.open == 1:
                torch.overrides.get_overridable_functions()  # torch lists them once, under their paths
                self.function, self.fast = F.scaled_dot_product_attention, torch.backends.mha.get_fastpath_enabled()
                F.scaled_dot_product_attention = scaled_dot_product_attention  # type: ignore[assignment]
                torch.backends.mha.set_fastpath_enabled(False)

    def leave(self) -> None:
        with self.lock:
            self.open -= 1
            if not self.open:
                F.scaled_dot_product_attention = self.function
                torch.backends.mha.set_fastpath_enabled(self.fast)


SCOPES = _Scopes()


@contextmanager
def sdpa() -> Iterator[None]:
    """A scope in which every caller of torch's attention gets :func:`scaled_dot_product_attention`.

    A model that was written for torch's gains forward mode, ``vmap(grad)`` and second derivatives in it:
    ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` too, whose fast path is off meanwhile. Scopes nest;
    what was there before comes back when the last one ends, after an exception too. The function in
    ``torch.nn.functional`` is one for all threads, and so another thread that calls it by that path gets this one too
    while any scope is open; one that imported the function by name does not. Inside ``torch.compile`` a scope is
    not opened, but found: open it around what calls the compiled function.

    Example:
        >>> layer, x = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(3, 5, 8)
        >>> with sdpa():
        ...     y, along = torch.func.jvp(layer, (x,), (torch.ones_like(x),))
        >>> along.shape
        torch.Size([3, 5, 8])
    """
    SCOPES.enter()
    try:
        with _Mode():
            yield
    finally:
        SCOPES.leave()
