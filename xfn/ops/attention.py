"""Scaled dot-product attention.

    s = scale · q kᵀ + bias          hidden keys do not take part
    out = (softmax(s) ∘ D) v         lse = log Σₙ exp(s)        D = keep / (1 − p), or 1 without dropout

    causal, M = N    causal, M < N    bottom-right     local(1, 1)      segments([2, 2])
    1 0 0 0          1 0 0 0 0        1 1 0 0 0        1 1 0 0          1 1 0 0
    1 1 0 0          1 1 0 0 0        1 1 1 0 0        1 1 1 0          1 1 0 0
    1 1 1 0          1 1 1 0 0        1 1 1 1 0        0 1 1 1          0 0 1 1
    1 1 1 1          1 1 1 1 0        1 1 1 1 1        0 0 1 1          0 0 1 1

    M query length      H query heads                         K features of q and k, per head
    N key length        G key heads, H a multiple of G        V features of v, per head

Logits, softmax and sums are kept in float32, or float64 where that came in; out is in q's dtype. A query that
sees no key gives zeros, lse = −∞ and zero gradients. A key that holds a NaN or an infinity, or whose value does,
can spoil the queries that see it and touches no other; nor does a query touch a key that is hidden from it.

Source: Vaswani et al., "Attention is all you need" (2017); in tiles: Rabe and Staats (2021), Dao et al. (2022).
"""

from functools import partial

import torch
from torch import Tensor

from .. import bias as biases
from .. import random
from .._core import philox
from .._core.kinds import wide
from .._core.levels import plain, quiet
from .._core.primitive import Primitive
from .._core.terms import Resolved
from ..bias import Bias
from ._calls import SIGNATURE, bounds, case, checked, fit, simple


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Bias | Tensor | None = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    key: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mix the values of the keys that each query sees, weighted by softmax(scale · q kᵀ + bias).

    Args:
        q: ``[..., M, H, K]``.
        k: ``[..., N, G, K]``; query head h reads key head h // (H // G).
        v: ``[..., N, G, V]``.
        bias: added to the logits: a :class:`xfn.bias.Bias`, a floating tensor that broadcasts to
            ``[..., H, M, N]`` (gradients flow into it), or a boolean one, True where attention is allowed.
        p: probability of dropping a softmax weight; the others grow by 1 / (1 − p). Rounded to a multiple of 2⁻¹⁶.
        scale: factor of q kᵀ; by default K ** -0.5.
        key: what the dropout is drawn with: one key ``[2]``, of which example i takes ``fold_in(key, i)``, or one
            per example ``[..., 2]``. Required when p > 0.
        backend: ``"reference"``, ``"cpu"``, ``"cuda"``, ``"triton"``, ``"aten"`` or ``"tiled"``; by default
            the first that can, ``"cuda"`` for float32 of few features alone.

    Returns:
        ``[..., M, H, V]`` in q's dtype, or in that of ``torch.autocast``.

    Raises:
        ShapeError: shapes contradict each other.
        TypeError, ValueError: dtypes or devices differ, scale is a tensor, or p is not in [0, 1).
        KeyRequired: p > 0 without a key.
        Unsupported: the backend that was named cannot; the text says why.

    Examples:
        >>> q, k, v = random.normal(random.key(0), (3, 2, 5, 4, 8))
        >>> attention(q, k, v, biases.causal()).shape
        torch.Size([2, 5, 4, 8])

        One example is as good as a batch:

        >>> torch.allclose(attention(q[0], k[0], v[0]), attention(q, k, v)[0], atol=1e-6)
        True

        Per-example gradients:

        >>> torch.func.vmap(torch.func.grad(lambda q, k, v: attention(q, k, v).sum()))(q, k, v).shape
        torch.Size([2, 5, 4, 8])
    """
    return attention_with_lse(q, k, v, bias, p, scale, key=key, backend=backend)[0]


def attention_with_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Bias | Tensor | None = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    key: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`attention`, with the log-sum-exp of each query's logits, lse = log Σₙ exp(scale · q kᵀ + bias).

    Returns:
        ``out [..., M, H, V]`` in q's dtype and ``lse [..., H, M]`` in float32 (float64 stays); gradients flow
        through both. What dropout removes still counts in lse.

    Example:
        >>> q, k, v = random.normal(random.key(0), (3, 5, 4, 8))
        >>> out, lse = attention_with_lse(q, k, v)
        >>> lse.shape
        torch.Size([4, 5])
    """
    if simple(q, k, v, p, scale, key, backend) and quiet():
        found = _bare(q, k, v, bias)
        if found is not None:
            return found
    operands, options = checked(q, k, v, bias, p, scale, key)
    return ATTENTION.bind(*operands, **options, backend=backend)  # type: ignore[return-value]


def _bare(q: Tensor, k: Tensor, v: Tensor, bias: Bias | Tensor | None) -> tuple[Tensor, Tensor] | None:
    """A call with nothing but bounds that are kept, by the shortest road that takes it; None if there is none."""
    c = bounds(bias, q, k)
    if c is None:
        return None
    if q.is_cpu and (swift := ATTENTION.swift) is not None:
        out, lse = swift(q, k, v, c[0], c[1])
        if out is not None:
            return out, lse
    if plain((q, k, v)) and fit(q, k, v):
        return ATTENTION.direct((q, k, v), c, p=0.0, scale=q.shape[-1] ** -0.5)  # type: ignore[return-value]
    return None


def reference(
    q: Tensor, k: Tensor, v: Tensor, dense: Tensor | None, slopes: Tensor | None, lo: Tensor | None, hi: Tensor | None,
    key: Tensor | None, *, p: float, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The specification, in plain torch; O(M N) memory."""
    with torch.autocast(q.device.type, enabled=False):
        given, dtype, (M, H), (N, G) = q.dtype, wide(q.dtype), q.shape[-3:-1], k.shape[-3:-1]
        bias = Resolved(lo, hi, dense, slopes)
        visible = bias.visible(M, N, q.device)

        # What is not finite becomes zero, so that it touches no sum, and marks the logits of those who see it.
        sound = k.isfinite().all(-1, keepdim=True) & v.isfinite().all(-1, keepdim=True)  # [..., N, G, 1]
        clean = q.isfinite().all(-1, keepdim=True)  # [..., M, H, 1]
        seen = visible.any(-1).mT.unsqueeze(-1)  # [..., M, H|1, 1]
        k, v = (torch.where(sound, t.to(dtype), 0).repeat_interleave(H // G, -2) for t in (k, v))
        q = torch.where(seen & clean, q.to(dtype), 0)
        whole = sound.repeat_interleave(H // G, -2).movedim(-3, -1) & clean.movedim(-3, -2)

        s = bias.added_to(torch.where(whole, torch.einsum("...mhk,...nhk->...hmn", q * scale, k), torch.nan))
        top = torch.where(visible, s, -torch.inf).detach().amax(-1, keepdim=True) if N else s.new_zeros(1)
        top = torch.where(top == -torch.inf, 0, top)
        weights = torch.where(visible, (torch.where(visible, s, 0) - top).exp(), 0)
        total = weights.sum(-1, keepdim=True)
        some = total != 0
        total = torch.where(some, total, 1)
        lse = torch.where(some, total.log() + top, -torch.inf).squeeze(-1)
        weights = torch.where(visible, weights / total, 0)
        if key is not None:
            kept = philox.keep(key, p, torch.arange(H, device=q.device), torch.arange(M, device=q.device), 0, N)
            weights = weights * kept / (1 - philox.threshold(p) / 65536)
        out = torch.where(seen, torch.einsum("...hmn,...nhv->...mhv", weights, v), 0)
        return out.to(given), lse.expand(*out.shape[:-3], H, M)


BACKENDS = ("cpu", "cuda", "triton", "aten", "tiled")
ATTENTION = Primitive("attention", SIGNATURE, reference, options=("p", "scale"), backends=BACKENDS)


_case = partial(case, attention_with_lse)

CASES = (
    _case("plain", tags="compiled"),
    _case("example", batch="", tags="tiny", M=3, N=4, H=2, G=1, K=2, V=3),
    _case("causal", biases.causal, tags="tiny", batch="", M=3, N=3, K=2, V=2),
    _case("cross", N=7, V=6),
    _case("bottom-right", lambda: biases.causal("bottom-right"), M=3, N=7),
    _case("top-heavy", lambda: biases.causal("bottom-right"), M=7, N=3),
    _case("grouped", biases.causal, H=6, G=2),
    _case("multi-query", H=4, G=1, K=3, V=5),
    _case("two batches", batch="B C", C=3, M=3, N=4),
    _case("bias", lambda b: b, "B H M N"),
    _case("head bias", lambda b: biases.causal() + Bias.of(b), "H 1 N", tags="tiny", M=2, N=3, B=1),
    _case("key bias", lambda b: b, "N", M=4),
    _case("mask", lambda: random.bernoulli(random.key(1), 0.5, (2, 2, 5, 7)), N=7),
    _case("mask, bias", lambda b: Bias.of(random.bernoulli(random.key(2), 0.6, (5, 5))) & Bias.of(b), "H M N"),
    _case("padding", lambda: biases.span(0, torch.tensor([[4], [2]])), M=3),
    _case("window", lambda: biases.local(1, 2), M=9, N=9),
    _case("window and causal", lambda: biases.local(3, 0).causal("bottom-right"), tags="compiled", M=6, N=8),
    _case("segments", lambda: biases.segments([2, 0, 3], [3, 1, 3]).causal("bottom-right"), N=7, H=4),
    _case("padded", lambda: biases.padded([2, 1, 2], 3, [3, 1, 0]).causal(), N=9),
    _case("alibi", lambda slopes: biases.causal() + biases.alibi(slopes), "H", tags="tiny", B=1, M=3, N=3, K=2),
    _case("blind rows", lambda: torch.tensor([True, False, True, False, True])[:, None]),
    _case("blind", lambda: biases.span(0, 0)),
    _case("dropout", biases.causal, p=0.3, H=4),
    _case("dropout and bias", lambda b: b, "1 M N", p=0.5, H=4, G=2, tags="tiny compiled", B=1, M=3, N=3, K=2, V=2),
    _case("scaled", scale=1.5),
    _case("turned", biases.causal, scale=-1.5, N=7),
    _case("level", biases.causal, scale=0.0),
    _case("one feature", K=1, V=1),
    _case("odd", biases.causal, M=17, N=17, K=17, V=35),
    _case("no queries", M=0, tags="empty"),
    _case("no keys", N=0, tags="empty"),
    _case("no examples", B=0, tags="empty"),
    _case("no examples, but a bias", lambda b: b, "1 M N", B=0, tags="empty"),
    _case("long", biases.causal, tags="long", batch="B", B=1, M=2048, N=2048, H=8, G=8, K=64, V=64),
    _case("short", tags="long", B=64, M=128, N=128, H=4, G=4, K=32, V=32),
)
