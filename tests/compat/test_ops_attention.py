"""memory_efficient_attention and its parts against dense attention under masks that are written out."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, func

from benchmarks.measure import peak_bytes
from tests.cases import agree
from xfn.compat import ops as xops
from xfn.compat.ops import fmha
from xfn.compat.ops.fmha import attn_bias as b

from .biases import DIAGONAL, Sample, dense, drawn, every_bias

ATTEND: Any = xops.memory_efficient_attention
BACKWARD: Any = xops.memory_efficient_attention_backward
OPS = [*fmha.ALL_FW_OPS, *fmha.ALL_BW_OPS]


def attend(sample: Sample, x: tuple[Tensor, ...], added: Tensor | None = None) -> Tensor:
    return dense(*x, sample.added() if added is None else added)


@every_bias
def test_value_gradients_and_lse_are_those_of_dense_attention(sample: Sample) -> None:
    x = tuple(t.requires_grad_() for t in drawn(sample, 1))
    want = attend(sample, x)
    got = xops.memory_efficient_attention(*x, sample.bias)
    slope = torch.randn_like(got)
    wanted = torch.autograd.grad(want, x, slope)
    agree(got, want)
    agree(torch.autograd.grad(got, x, slope), wanted)
    with torch.no_grad():
        out, lse = xops.memory_efficient_attention_forward_requires_grad(*x, sample.bias)
        logits = torch.einsum("bmhk,bnhk->bhmn", *x[:2]) / 2 + sample.added()
        agree(out, want)
        agree(lse.nan_to_num(neginf=0), logits.logsumexp(-1).nan_to_num(neginf=0))
        agree(xops.memory_efficient_attention_backward(slope, out, lse, *x, sample.bias), wanted)


@every_bias
def test_transforms_are_those_of_dense_attention(sample: Sample) -> None:
    x, t, examples = drawn(sample, 1), drawn(sample, 1), drawn(sample, 3, 1)

    def loss(dense: bool) -> Any:
        return lambda *x: (attend(sample, x) if dense else xops.memory_efficient_attention(*x, sample.bias)).sin().sum()

    ours, theirs = (func.grad(loss(dense), (0, 1, 2)) for dense in (False, True))
    agree(func.vmap(ours)(*examples), func.vmap(theirs)(*examples))
    agree(func.jvp(ours, x, t), func.jvp(theirs, x, t))


def test_a_bias_is_the_same_in_every_layer_and_mode() -> None:
    """What is kept of a bias from inference has a gradient later, and goes into a compiled graph."""
    bias = b.BlockDiagonalMask.from_seqlens([2, 3]).make_causal()
    q, k, v = torch.randn(3, 1, 5, 2, 4, dtype=torch.float64)
    with torch.inference_mode():
        first = xops.memory_efficient_attention(q, k, v, bias)
    x = tuple(t.requires_grad_() for t in (q, k, v))
    want = dense(*x, bias.materialize((5, 5), torch.float64))
    paged = b.PagedBlockDiagonalPaddedKeysMask.from_seqlens([2, 3], [3, 2], torch.tensor([[0, 1], [2, 0]]), 2)
    for attend in (ATTEND, torch.compile(ATTEND, backend="aot_eager", fullgraph=True)):
        got = attend(*x, bias)
        agree((got, first), (want, want))
        slope = torch.randn_like(got)
        agree(torch.autograd.grad(got, x, slope), torch.autograd.grad(want, x, slope, retain_graph=True))
        q, k, v = (torch.cat([t, t[:, :1]], 1).detach() for t in x)
        agree(attend(q[:, :5], k, v, paged), dense(q[:, :5], k, v, paged.materialize((5, 6), torch.float64)))


@every_bias
def test_groups_of_heads_are_heads(sample: Sample) -> None:
    """BMGHK, with the keys of a group expanded, and BMHK with one for all; gradients reach what was expanded."""
    held = sample.bias
    if isinstance(held, b.LowerTriangularMaskWithTensorBias):
        held = type(held)(held.tensor[:, None].expand(-1, 2, -1, -1, -1))
    q = torch.randn(1, sample.M, 2, 2, 4, dtype=torch.float64)
    k, v = torch.randn(2, 1, sample.N, 2, 1, 4, dtype=torch.float64)
    wide = [t.expand(-1, -1, -1, 2, -1) for t in (k, v)]
    added = sample.added()
    added = torch.cat([added, added]) if added.dim() == 3 else added
    want = dense(q.flatten(2, 3), *(t.flatten(2, 3) for t in wide), added).unflatten(2, (2, 2))
    agree(xops.memory_efficient_attention(q, *wide, held), want)

    def summed(f: Any) -> Any:
        return lambda *x: f(*x).square().sum()

    ours = func.grad(summed(lambda q, k, v: xops.memory_efficient_attention(q, k, v, held)), (0, 1, 2))
    theirs = func.grad(
        summed(lambda q, k, v: dense(q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3), added)), (0, 1, 2)
    )
    wanted = theirs(q, *wide)
    agree(ours(q, *wide), wanted)
    out, lse = xops.memory_efficient_attention_forward_requires_grad(q, *wide, held)
    agree(xops.memory_efficient_attention_backward(2 * out, out, lse, q, *wide, held), wanted)
    if sample.bias is held:
        k, v = k[:, :, :1, 0].expand(-1, -1, 2, -1), v[:, :, :1, 0].expand(-1, -1, 2, -1)
        agree(xops.memory_efficient_attention(q[:, :, 0], k, v, held), dense(q[:, :, 0], k, v, added))


@pytest.mark.parametrize("kind", ["none", "causal", "tensor"])
def test_one_head_goes_without_its_dim(kind: str) -> None:
    tensor = torch.randn(2, 5, 5, dtype=torch.float64)
    bias = {"none": None, "causal": b.LowerTriangularMask(), "tensor": tensor}[kind]
    q, k, v = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    added = 0.0 if bias is None else bias[:, None] if isinstance(bias, Tensor) else bias.materialize((1, 1, 5, 5))
    want = dense(*(t[:, :, None] for t in (q, k, v)), added, 0.3)[:, :, 0]
    agree(xops.memory_efficient_attention(q, k, v, bias, scale=0.3), want)
    out, lse = xops.memory_efficient_attention_forward_requires_grad(q, k, v, bias, scale=0.3)
    assert lse.shape == (2, 1, 5)
    slope, x = torch.randn_like(out), tuple(t.requires_grad_() for t in (q, k, v))
    got = BACKWARD(slope, out, lse, *x, attn_bias=bias, scale=0.3)
    agree(got, torch.autograd.grad(dense(*(t[:, :, None] for t in x), added, 0.3)[:, :, 0], x, slope))


@pytest.mark.parametrize("causal", [False, True])
def test_a_tensor_bias_has_a_gradient_though_nothing_else_wants_one(causal: bool) -> None:
    q, k, v = torch.randn(3, 2, 5, 2, 4, dtype=torch.float64)
    bias = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    mask = b.LowerTriangularMask()
    got = xops.memory_efficient_attention(q, k, v, mask.add_bias(bias) if causal else bias)
    want = dense(q, k, v, bias + mask.materialize((5, 5)) if causal else bias)
    slope = torch.randn_like(got)
    agree(torch.autograd.grad(got, bias, slope), torch.autograd.grad(want, bias, slope))


def test_a_boolean_tensor_keeps_where_it_is_true() -> None:
    keep = torch.rand(2, 3, 5, 5) < 0.7
    assert torch.equal(ATTEND(X, X, X, keep), ATTEND(X, X, X, torch.where(keep, 0.0, -math.inf)))


def test_a_bias_of_ones_own_is_written_out() -> None:
    class Striped(xops.AttentionBias):
        def materialize(self, shape: Any, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> Tensor:
            stripes = torch.arange(shape[-1], device=device) % 2
            return torch.where(stripes == 0, 0.0, -torch.inf).to(dtype).expand(shape)

    q, k, v = torch.randn(3, 1, 5, 2, 4, dtype=torch.float64)
    agree(xops.memory_efficient_attention(q, k, v, Striped()), dense(q, k[:, ::2], v[:, ::2]))
    with pytest.raises(NotImplementedError, match="AttentionBias has neither"):
        xops.memory_efficient_attention(q, k, v, xops.AttentionBias())


@pytest.mark.parametrize("p", [0.25, 1.0])
def test_dropout_is_drawn_from_torchs_generator(p: float) -> None:
    q, k = torch.randn(2, 2, 40, 2, 8, requires_grad=True)
    v = torch.ones(2, 40, 2, 8)
    torch.manual_seed(3)
    one, other = (xops.memory_efficient_attention(q, k, v, p=p) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(one, xops.memory_efficient_attention(q, k, v, p=p))
    assert torch.equal(one, other) is (p == 1)
    assert abs(one.mean().item() - (p < 1)) < 0.05
    assert torch.autograd.grad(one.sum(), q)[0].isfinite().all()
    dropped = func.vmap(lambda q: xops.memory_efficient_attention(q, k, v, p=p), randomness="different")
    first, second = dropped(torch.stack([q, q]))
    assert torch.equal(first, second) is (p == 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    exact = torch.randn(3, 2, 9, 2, 16, dtype=torch.float64)
    q, k, v = exact.to(dtype)
    want, eps = dense(*(t.double() for t in (q, k, v))), torch.finfo(dtype).eps
    for asked in (None, torch.float32, torch.float16):
        got = xops.memory_efficient_attention(q, k, v, output_dtype=asked)
        assert got.dtype == (asked or dtype)
        agree(got, want, 8 * max(torch.finfo(got.dtype).eps, 0 if asked == torch.float32 else eps))
    out, lse = xops.memory_efficient_attention_partial(q, k, v)
    assert out.dtype == lse.dtype == torch.float32
    agree(out, want, 1e-6)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.NAME)
def test_an_operator_runs_or_says_why_it_cannot(op: Any) -> None:
    q, k, v = torch.randn(3, 1, 5, 2, 16)
    pair = (op, None) if issubclass(op, xops.AttentionFwOpBase) else (None, op)
    for bias in (None, b.LowerTriangularMask(), DIAGONAL.make_causal()):
        x = (q, *torch.randn(2, 1, 9, 2, 16)) if isinstance(bias, b.BlockDiagonalMask) else (q, k, v)
        why = op.not_supported_reasons(fmha.Inputs(*x, bias))
        assert op.supports(fmha.Inputs(*x, bias)) is not bool(why)
        if why:
            with pytest.raises(ValueError, match=re.escape(why[0].split(": ")[1])):
                ATTEND(*x, attn_bias=bias, op=pair)
        else:
            agree(ATTEND(*x, attn_bias=bias, op=pair), xops.memory_efficient_attention(*x, bias))
    assert op.is_available() is (op.info() == "available")
    assert op.not_supported_reasons(fmha.Inputs(q, k[:, :2], v))


def test_operators_must_have_a_backend_in_common() -> None:
    with pytest.raises(ValueError, match=r"op='cutlass' is no pair of operators: write"):
        ATTEND(X, X, X, op="cutlass")

    class Here(xops.AttentionFwOpBase):
        NAME, BACKENDS = "hereF", ("cpu",)

    q, k, v = torch.randn(3, 1, 5, 2, 16)
    agree(xops.memory_efficient_attention(q, k, v, op=(Here, None)), xops.memory_efficient_attention(q, k, v))
    with pytest.raises(ValueError, match="hereF and tritonB have no backend in common"):
        xops.memory_efficient_attention(q, k, v, op=(Here, fmha.triton.BwOp))


@pytest.mark.parametrize("kind", [b.BlockDiagonalPaddedKeysMask, b.BlockDiagonalCausalWithOffsetGappyKeysMask])
def test_what_lies_behind_the_last_slot_is_not_read(kind: Any) -> None:
    bias = kind.from_seqlens([2, 1], 5 if kind is b.BlockDiagonalPaddedKeysMask else [1, 5, 10], [3, 4])
    q, (k, v) = torch.randn(1, 3, 2, 4), torch.randn(2, 1, 17, 2, 4)
    k[:, 10:], v[:, 10:] = math.nan, math.nan
    assert torch.equal(ATTEND(q, k, v, bias), ATTEND(q, k[:, :10], v[:, :10], bias))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("heads", [(3,), (2, 3)])
def test_a_cache_of_four_bits(groups: int, heads: tuple[int, ...]) -> None:
    """Keys and values of 16 and 32 features, packed here, and attended to under a bias with room for more."""
    bias = b.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([1, 2], 4, [3, 4])
    packed, floats = [], []
    for K in (16, 32):
        numbers = torch.randint(16, (1, 8, *heads, K))
        row = (numbers.unflatten(-1, (-1, 8)) << torch.arange(0, 32, 4)).sum(-1).int()
        factors = torch.randn(1, 8, *heads, groups, 2).half()
        packed.append(torch.cat((factors.view(torch.int32).squeeze(-1), row), -1))
        scale, shift = factors.float().unsqueeze(-1).unbind(-2)
        floats.append((numbers.unflatten(-1, (groups, -1)) * scale + shift).flatten(-2))
    q = torch.randn(1, 3, *heads, 16)
    agree(ATTEND(q, *packed, bias), ATTEND(q, *floats, bias))


@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0)])
def test_empty_tensors(shape: tuple[int, ...]) -> None:
    B, M, N = shape
    q = torch.randn(B, M, 2, 4, requires_grad=True)
    k, v = torch.randn(2, B, N, 2, 4)
    out = xops.memory_efficient_attention(q, k, v)
    assert torch.equal(out, torch.zeros(B, M, 2, 4))
    assert torch.equal(torch.autograd.grad(out.sum(), q)[0], torch.zeros_like(q))


X = torch.randn(2, 5, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((X, X[:, 0], X), ValueError, "all BMK, all BMHK or all BMGHK"),
        ((X[0, 0], X[0, 0], X[0, 0]), ValueError, "all BMK, all BMHK or all BMGHK"),
        ((X, X.double(), X), ValueError, "torch.float32, torch.float64"),
        ((X, X.to("meta"), X), ValueError, "are on cpu, meta"),
        ((X, X[:, :, :1], X[:, :, :1]), ValueError, "none is broadcast"),
        ((X, X[:, :2], X), ValueError, "none is broadcast"),
        ((X, X[..., :2], X), ValueError, "none is broadcast"),
        ((X[:, :, 0], X[:, :, 0], X[:, :, 0], b.LocalAttentionFromBottomRightMask(1, 1)), ValueError, "BMK goes with"),
        ((X, X, X, torch.zeros(5, 5)), ValueError, "want [2, 3, 5, 5]"),
        ((X, X, X, torch.zeros(1, 3, 5, 5)), ValueError, "want [2, 3, 5, 5]"),
        ((X, X, X, b.LowerTriangularMask().add_bias(torch.zeros(5, 5))), ValueError, "want [2, 3, 5, 5]"),
        ((X, X, X, b.BlockDiagonalMask.from_seqlens([5])), ValueError, "wants one batch"),
        ((X[:1], X[:1], X[:1], b.BlockDiagonalMask.from_seqlens([4])), ValueError, "the segments hold 4 queries"),
        ((X, X, X, None, 1.5), ValueError, "p=1.5 must lie in [0, 1]"),
        ((X, X, X, "causal"), NotImplementedError, "no operator takes an attn_bias of str"),
        ((X.int(), X.int(), X.int()), NotImplementedError, "no operator takes query torch.int32"),
        ((X, X.long(), X.long()), ValueError, "torch.float32, torch.int64"),
        ((X, X.int(), X.int()), ValueError, "[..., groups + 4 / 8], but got [2, 5, 3, 4]"),
        ((X, X[:, :1].int(), X.int()), ValueError, "none is broadcast"),
        ((X, X, X, torch.zeros(2, 3, 5, 5).half()), ValueError, "pass attn_bias.to(query.dtype)"),
        ((X, X, X, b.LowerTriangularMaskWithTensorBias(torch.zeros(2, 3, 5, 5).double())), ValueError, "torch.float64"),
    ],
)
def test_what_is_refused(arguments: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        xops.memory_efficient_attention(*arguments)


def test_what_is_refused_of_the_parts() -> None:
    for f in (xops.memory_efficient_attention_forward_requires_grad, xops.memory_efficient_attention_partial):
        with pytest.raises(NotImplementedError, match="drops weights"):
            f(X, X, X, p=0.1)
    out, lse = xops.memory_efficient_attention_forward_requires_grad(X, X, X)
    for grad, seen, text in ((X[0], lse, "grad"), (X, lse[:, :1], "lse has shape"), (X, lse[..., :2], "lse has shape")):
        with pytest.raises(ValueError, match=text):
            xops.memory_efficient_attention_backward(grad, out, seen, X, X, X)


@pytest.mark.parametrize("kind", ["causal", "blocks", "padded"])
def test_memory_is_as_long_as_the_inputs(kind: str) -> None:
    half = [1024, 1024]
    bias = {
        "causal": b.LowerTriangularMask(),
        "blocks": b.BlockDiagonalMask.from_seqlens(half).make_causal(),
        "padded": b.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(half, 1024, [1024, 1000]),
    }[kind]
    q, k, v = (t.requires_grad_() for t in torch.randn(3, 1, 2048, 1, 16))
    peak = peak_bytes(lambda: torch.autograd.grad(xops.memory_efficient_attention(q, k, v, bias).sum(), (q, k, v)))
    assert 0 < peak < 2048**2


def test_the_programs_of_the_page() -> None:
    """Attention as the page on memory-efficient attention has it: blocks of a batch, and groups of heads."""
    K = 16
    list_x = [torch.randn([1, M, 1, K]) for M in (3, 6, 2)]
    attn_bias, x = fmha.BlockDiagonalMask.from_tensor_list(list_x)
    linear = torch.nn.Linear(K, K * 3)
    q, k, v = linear(x).reshape([1, -1, 1, 3, K]).unbind(-2)
    out = fmha.memory_efficient_attention(q, k, v, attn_bias=attn_bias)
    list_out = attn_bias.split(out)
    assert tuple(list_out[0].shape) == (1, 3, 1, K)
    parts = [linear(t).reshape([1, -1, 1, 3, K]).unbind(-2) for t in list_x]
    agree(list_out, [dense(*part) for part in parts], 1e-6)
    B, M, K = 3, 32, 128
    q, k, v = torch.randn([B, M, 8, K]), torch.randn([B, M, 2, K]), torch.randn([B, M, 2, K])
    out_gqa = xops.memory_efficient_attention(
        q.reshape([B, M, 2, 4, K]),
        k.reshape([B, M, 2, 1, K]).expand([B, M, 2, 4, K]),
        v.reshape([B, M, 2, 1, K]).expand([B, M, 2, 4, K]),
    )
    want = dense(q, *(t.repeat_interleave(4, 2) for t in (k, v))).unflatten(2, (2, 4))
    agree(out_gqa, want, 1e-6)
