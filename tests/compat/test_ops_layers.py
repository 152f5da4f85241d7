"""Norms, rotary caches and SwiGLU under their old names, against their formulas in float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, func

from tests.cases import agree
from xfn.compat import ops as xops
from xfn.compat.ops.fmha import attn_bias as b

from .biases import TABLES


def normed(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
    y = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return y if weight is None else y * weight


@pytest.mark.parametrize("weighed", [False, True])
def test_rms_norm_has_gradients(weighed: bool) -> None:
    x, y, slope = torch.randn(3, 4, 6, dtype=torch.float64)
    weight = torch.randn(6, dtype=torch.float64) if weighed else None
    agree(xops.rms_norm(x, weight, 0.1), normed(x, weight, 0.1))
    ours, theirs = (func.grad(lambda x: (f(x, weight) * slope[0]).sum()) for f in (xops.rms_norm, normed))
    agree(func.vmap(ours)(x), func.vmap(theirs)(x))
    start = x.clone()
    agree(xops.rms_norm_add(start, y, weight), normed(x + y, weight))
    agree(start, x + y)
    leaf = x.clone().requires_grad_()
    turned = leaf * 2
    (grad,) = torch.autograd.grad((xops.rms_norm_add(turned, y, weight) * slope).sum() + turned.sum(), leaf)
    agree(grad, func.grad(lambda x: (normed(2 * x + y, weight) * slope + 2 * x + y).sum())(x))


def test_rms_norm_is_a_module() -> None:
    norm = xops.RMSNorm(6, eps=1e-3).double()
    assert list(norm.state_dict()) == ["weight"]
    assert not list(xops.RMSNorm(6, include_weight=False).parameters())
    x, y = torch.randn(2, 4, 6, dtype=torch.float64)
    agree(norm(x), normed(x, None, 1e-3))
    want = normed(x + y, None, 1e-3)
    agree(norm.increment_and_forward_(x, y), want)
    agree(norm(x), want)


def gated(x: Tensor, *p: Tensor | None) -> Tensor:
    w1, b1, w2, b2, w3, b3 = p
    h = torch.nn.functional.silu(torch.nn.functional.linear(x, w1, b1)) * torch.nn.functional.linear(x, w2, b2)
    return torch.nn.functional.linear(h, w3, b3)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_swiglu(biased: bool, packed: bool) -> None:
    layer = xops.SwiGLU(5, 7, 3, bias=biased, _pack_weights=packed).double()
    inner = ["w12"] if packed else ["w1", "w2"]
    assert {name.split(".")[0] for name in layer.state_dict()} == {*inner, "w3"}
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    agree(layer(x), gated(x, *layer._ordered_params()))
    params = list(layer.parameters())
    slope = torch.randn(2, 4, 3, dtype=torch.float64)
    loss = (layer(x) * slope).sum()
    want = (gated(x, *layer._ordered_params()) * slope).sum()
    agree(torch.autograd.grad(loss, params), torch.autograd.grad(want, params))
    flat: Any = tuple(None if t is None else t.detach() for t in layer._ordered_params())
    each = func.vmap(func.grad(lambda x: xops.swiglu(x, *flat).sin().sum()))
    agree(each(x), func.vmap(func.grad(lambda x: gated(x, *flat).sin().sum()))(x))
    w1, b1, w2, b2, w3, b3 = flat
    both = None if b1 is None else torch.stack([b1, b2])
    agree(xops.swiglu_packed(x, torch.stack([w1, w2]), both, w3, b3), gated(x, *flat))
    for op in (xops.SwiGLUEagerOp, xops.SwiGLUFusedOp, xops.SwiGLUPackedFusedOp):
        assert op.supports(xops.SwiGLUOpDispatch.from_arguments(x, *flat))
        agree(xops.swiglu(x, *flat, op=op), gated(x, *flat))
    agree(xops.SwiGLUOpDispatch.from_arguments(x, *flat).op(x, *flat), gated(x, *flat))
    assert xops.SwiGLU(5, 7)(x.float()).shape == x.shape
    with pytest.raises(ValueError, match="w1 and w2 are both"):
        xops.swiglu(x, w1, b1, w2[1:], b2, w3, b3)
    with pytest.raises(ValueError, match="w1w2 is"):
        xops.swiglu_packed(x, w1, b1, w3, b3)


NEW, USED = [2, 0, 1], [4, 2, 3]
STARTS = [1, 6, 11, 14]
GAPPY = b.BlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens(NEW, STARTS, USED)
PADDED = b.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(NEW, 5, USED)
PAGED = b.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(NEW, [4, 1, 3], TABLES, 2)
# For each new token: its place in the caches, its sequence, and its position there.
CACHES = {
    "padded": (PADDED, 15, [(2, 0, 2), (3, 0, 3), (12, 2, 2)]),
    "gappy": (GAPPY, 14, [(3, 0, 2), (4, 0, 3), (13, 2, 2)]),
    "paged": (PAGED, 16, [(10, 0, 2), (11, 0, 3), (12, 2, 2)]),
}


def turned(x: Tensor, position: float, theta: float, adjacents: bool, factors: Any = None) -> Tensor:
    """One token ``[..., K]``, pair by pair."""
    y, K = x.clone(), x.shape[-1]
    for i in range(K // 2):
        f = theta ** (-2 * i / K)
        angle = position * (f if factors is None else factors(f))
        a, c = (2 * i, 2 * i + 1) if adjacents else (i, i + K // 2)
        y[..., a] = math.cos(angle) * x[..., a] - math.sin(angle) * x[..., c]
        y[..., c] = math.sin(angle) * x[..., a] + math.cos(angle) * x[..., c]
    return y


def stretched(f: float) -> float:
    """The frequencies of Llama 3, for a context of 64 made 4 times longer, between 1 and 8 turns."""
    wave = 2 * math.pi / f
    if wave > 64 / 1:
        return f / 4
    if wave <= 64 / 8:
        return f
    t = (64 / wave - 1) / (8 - 1)
    return (1 - t) * f / 4 + t * f


DYNAMIC = {
    "use_dynamic_scaling": True,
    "dynamic_old_context_len": 64.0,
    "dynamic_scale_factor": 4.0,
    "dynamic_high_freq_factor": 8.0,
}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    ("options", "at", "factors"),
    [
        ({}, lambda s, p, t: p, None),
        ({"theta": 100.0, "linear_scale": 2.0}, lambda s, p, t: p / 2, None),
        ({"adjacents": False, "internal_dtype": "f64"}, lambda s, p, t: p, None),
        ({"first_seqpos": torch.tensor([7, 8, 9])}, lambda s, p, t: p + 7 + s, None),
        ({"seqpos": torch.tensor([30, 10, 20])}, lambda s, p, t: (30, 10, 20)[t], None),
        (DYNAMIC | {"linear_scale": 2.0}, lambda s, p, t: p / 2, stretched),
    ],
    ids=["plain", "scaled", "halves", "first", "positions", "dynamic"],
)
@pytest.mark.parametrize("groups", [(), (2,)])
def test_new_tokens_are_turned_and_put_in_their_places(
    cache: str, options: Any, at: Any, factors: Any, groups: tuple[int, ...]
) -> None:
    bias, N, tokens = CACHES[cache]
    xq = torch.randn(1, 3, *groups, 4, 6, dtype=torch.float64)
    xk, xv = torch.randn(2, 1, 3, *groups, 2, 6, dtype=torch.float64)
    before = torch.randn(2, 1, N, *groups, 2, 6, dtype=torch.float64)
    theta, adjacents = options.get("theta", 1e4), options.get("adjacents", True)
    q, k, v = xq.clone(), *before.clone()
    for t, (place, sequence, position) in enumerate(tokens):
        where = at(sequence, position, t)
        q[:, t] = turned(xq[:, t], where, theta, adjacents, factors)
        k[:, place] = turned(xk[:, t], where, theta, adjacents, factors)
        v[:, place] = xv[:, t]
    cache_k, cache_v = before.clone()
    out = torch.empty_like(xq)
    got = xops.rope_padded(xq, xk, xv, cache_k, cache_v, bias, out_q=out, **options)
    agree((got, out, cache_k, cache_v), (q, q, k, v))
    if "use_dynamic_scaling" not in options:
        agree(xops.rope_padded_functional(xq, xk, xv, *before, bias, **options), (q, k, v))


def test_gradients_go_through_the_caches() -> None:
    xq, xk, xv = torch.randn(3, 1, 3, 2, 4, dtype=torch.float64)
    caches = torch.randn(2, 1, 15, 2, 4, dtype=torch.float64)

    def written(xq: Tensor, xk: Tensor, xv: Tensor) -> Tensor:
        k, v = (cache.clone() for cache in caches)
        q = xops.rope_padded(xq, xk, xv, k, v, PADDED)
        return xops.memory_efficient_attention(q, k, v, PADDED).sin().sum()

    def returned(xq: Tensor, xk: Tensor, xv: Tensor) -> Tensor:
        return (
            xops.memory_efficient_attention(*xops.rope_padded_functional(xq, xk, xv, *caches, PADDED), PADDED)
            .sin()
            .sum()
        )

    ours = torch.autograd.grad(written(*(x := tuple(t.requires_grad_() for t in (xq, xk, xv)))), x)
    agree(ours, func.grad(returned, (0, 1, 2))(*(t.detach() for t in x)))
    agree(ours, torch.autograd.functional.jacobian(returned, x))
    each = func.vmap(func.grad(returned, (0, 1, 2)))(*(torch.stack([t.detach(), 2 * t.detach()]) for t in x))
    agree(tuple(t[0] for t in each), ours)


def test_one_head_that_is_expanded_is_written_once() -> None:
    xq = torch.randn(1, 3, 4, 6)
    xk, xv = torch.randn(2, 1, 3, 1, 6)
    caches = torch.zeros(2, 1, 15, 1, 6)
    wide = caches.clone()
    q = xops.rope_padded(xq, xk, xv, *caches, PADDED)
    spread = [t.expand(-1, -1, 4, -1) for t in (xk, xv, *wide)]
    agree(xops.rope_padded(xq, *spread, PADDED), q, 0)
    agree(wide, caches, 0)


def test_what_is_refused() -> None:
    x, cache = torch.randn(1, 3, 2, 4), torch.zeros(1, 15, 2, 4)
    late = b.BlockDiagonalPaddedKeysMask.from_seqlens([3], 15, [2])
    wrong: list[tuple[Any, Any, str]] = [
        ((x[0], x[0], x[0], cache, cache, PADDED), {}, "are .1, M, heads, K. or"),
        ((x.expand(2, -1, -1, -1), x, x, cache, cache, PADDED), {}, "are .1, M, heads, K. or"),
        ((x[:, :2], x, x, cache, cache, PADDED), {}, "contradict each other"),
        ((x, x[..., :1, :], x, cache, cache, PADDED), {}, "contradict each other"),
        ((x, x, x, cache[:, :9], cache[:, :9], PADDED), {}, "places up to 13"),
        ((x, x, x, cache, cache, late), {}, "has 2 keys, which do not hold"),
        ((x, x, x, cache, cache, PADDED), {"internal_dtype": "f16"}, "internal_dtype='f16' is none of"),
        ((x, x, x, cache, cache, PADDED), {"out_q": x[:, :1]}, "out_q is"),
        ((x, x, x, cache, cache, PADDED), {"seqpos": x, "first_seqpos": x}, "pass one of them"),
    ]
    for arguments, options, text in wrong:
        with pytest.raises(ValueError, match=text):
            xops.rope_padded(*arguments, **options)
