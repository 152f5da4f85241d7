"""The programs of the pages on block-sparse and sparse attention, as functions: values, gradients, memory."""

import math

import pytest
import torch
from torch import Tensor

import xfn
from benchmarks.measure import peak_bytes
from tests.cases import agree
from xfn import bias, blocksparse_attention, patterns, random
from xfn.bias import Bias
from xfn.layout import Layout

BATCH, HEADS, SEQ, EMB, BLOCK = 2, 8, 512, 256, 32
DROPOUT = 0.1


def softmaxed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Dense attention on ``[..., M, H, K]``, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    logits = torch.einsum("...mhk,...nhk->...hmn", q, k) / math.sqrt(q.shape[-1])
    weights = logits.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0.0)
    return torch.einsum("...hmn,...nhv->...mhv", weights, v)


Weights = tuple[Tensor, Tensor, Tensor, Tensor]


def multi_head(weights: Weights, x: Tensor, layout: Layout, mask: Bias | Tensor) -> Tensor:
    """Project, attend within the blocks and the mask, project."""
    q, k, v = (torch.nn.functional.linear(x, w).unflatten(-1, (HEADS, -1)) for w in weights[:3])
    return torch.nn.functional.linear(blocksparse_attention(layout, q, k, v, mask).flatten(-2), weights[3])


def weighed() -> Weights:
    a, b, c, d = torch.randn(4, EMB, EMB) / math.sqrt(EMB)
    return a, b, c, d


def test_block_sparse_attention_with_a_mask_per_coefficient() -> None:
    """A causal layout of blocks, the same or its own for each head, and a causal mask that trims the diagonal."""
    causal_mask = torch.tril(torch.ones(SEQ, SEQ)).bool()
    blocks = SEQ // BLOCK
    shared = torch.tril(torch.ones(blocks, blocks)).bool()
    own = shared | random.bernoulli(random.key(0), 0.2, (HEADS, blocks, blocks))
    q, k, v = torch.randn(3, BATCH, SEQ, HEADS, EMB // HEADS)
    want = softmaxed(q, k, v, causal_mask)
    for tiles in (shared, shared.expand(HEADS, -1, -1), own):
        for mask in (causal_mask, bias.causal()):
            agree(blocksparse_attention(Layout(tiles, BLOCK), q, k, v, mask), want, 1e-5)
    blocky = patterns.expand(own, BLOCK)
    agree(blocksparse_attention(Layout(own, BLOCK), q, k, v), softmaxed(q, k, v, blocky), 1e-5)


def test_blocks_drop_what_the_mask_alone_would() -> None:
    """One key drops the same weights, whatever the blocks."""
    q, k, v = torch.randn(3, BATCH, SEQ, HEADS, EMB // HEADS)
    tiles = Layout(patterns.causal_1d(SEQ // BLOCK), BLOCK)
    got = blocksparse_attention(tiles, q, k, v, bias.causal(), DROPOUT, key=random.key(0))
    agree(got, xfn.attention(q, k, v, bias.causal(), DROPOUT, key=random.key(0)), 1e-5)


def test_multi_head_attention_and_its_gradient_are_those_of_torch() -> None:
    causal = patterns.causal_1d(SEQ)
    layout = Layout(patterns.causal_1d(SEQ // BLOCK).expand(HEADS, -1, -1), BLOCK)
    theirs = torch.nn.MultiheadAttention(EMB, HEADS, bias=False, batch_first=True)
    weights = tuple(w.detach().requires_grad_() for w in (*theirs.in_proj_weight.chunk(3), theirs.out_proj.weight))
    x = torch.randn(BATCH, SEQ, EMB)
    want, _ = theirs(x, x, x, attn_mask=~causal, need_weights=False)
    got = multi_head(weights, x, layout, bias.causal())
    agree(got, want, 1e-5)
    slope = torch.randn_like(want)
    want.backward(slope)
    assert theirs.in_proj_weight.grad is not None
    found = torch.autograd.grad(got, weights, slope)
    agree(found[:3], theirs.in_proj_weight.grad.chunk(3), 1e-4)
    agree(found[3], theirs.out_proj.weight.grad, 1e-4)


@pytest.mark.parametrize("density", [0.9, 0.1])
def test_attention_with_a_mask_dense_or_sparse(density: float) -> None:
    """Nothing is to be done but to pass the mask."""
    inputs = torch.rand(4, 256, 1, 64)
    mask = torch.rand(256, 256) < density
    agree(xfn.attention(inputs, inputs, inputs, mask), softmaxed(inputs, inputs, inputs, mask), 1e-5)


def test_complex_patterns() -> None:
    h, w = 20, 30
    axial_pattern = patterns.axial_2d(h, w)
    loc_2d_dist = patterns.local_2d(h, w, distance=5, p=2.0)
    gaus_2d_dist = patterns.local_2d_gaussian(h, w, sigma=2)
    num_non_zeros = int((h * w) ** 2 * (1 - 0.95))
    random_gaus_2d_pattern = patterns.random_from_probability(gaus_2d_dist, num_non_zeros, random.key(0))
    combined_mask = axial_pattern | loc_2d_dist | random_gaus_2d_pattern
    assert random_gaus_2d_pattern.sum() == num_non_zeros
    assert axial_pattern.sum(-1).eq(h + w - 1).all()
    x = torch.randn(h * w, 2, 16)
    agree(xfn.attention(x, x, x, combined_mask), softmaxed(x, x, x, combined_mask), 1e-5)


def test_memory_is_a_third_of_what_torch_takes() -> None:
    """The page's own comparison: all that a call allocates, and what its gradient will need included."""
    causal = patterns.causal_1d(SEQ)
    layout = Layout(patterns.causal_1d(SEQ // BLOCK).expand(HEADS, -1, -1), BLOCK)
    theirs = torch.nn.MultiheadAttention(EMB, HEADS, bias=False, batch_first=True)
    x = torch.randn(BATCH, SEQ, EMB, requires_grad=True)
    weights = weighed()
    ours, torchs = (
        peak_bytes(lambda: [call()].clear())
        for call in (lambda: multi_head(weights, x, layout, causal), lambda: theirs(x, x, x, attn_mask=~causal))
    )
    assert 0 < ours < 0.35 * torchs, f"{ours / torchs:.2f}"
