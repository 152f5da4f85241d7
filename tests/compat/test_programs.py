"""The programs of the pages on attention, with other imports, and on the CPU where there is no GPU.

What measures memory does so by torch's profiler there. Sizes are those of the pages, but that block-sparse attention
has half the tokens and half the width; those that a page leaves open are small.
"""

import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import xfn.compat.components.attention.attention_patterns as AP
import xfn.compat.ops as xops
from benchmarks.measure import peak_bytes
from tests.cases import agree
from xfn.compat.components import MultiHeadDispatch, build_attention
from xfn.compat.components.attention import (
    ATTENTION_REGISTRY,
    Attention,
    AttentionConfig,
    BlockSparseAttention,
    ScaledDotProduct,
    register_attention,
)
from xfn.compat.components.reversible import ReversibleBlock, ReversibleSequence
from xfn.compat.ops import fmha
from xfn.compat.sparse_attention import attention_impl, blocksparse_attention_impl

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = torch.float16 if torch.cuda.is_available() else torch.float32


def megabytes(out: str, title: str) -> int:
    """What a line says that was printed."""
    found = re.search(rf"^{title} - Peak memory use: (\d+)MB", out, re.MULTILINE)
    assert found, f"no line of {title} in {out!r}"
    return int(found[1])


def test_block_sparse_attention(capsys: pytest.CaptureFixture[str]) -> None:
    BATCH = 2
    HEADS = 8
    SEQ = 1024
    EMB = 512
    BLOCK_SIZE = 32
    DROPOUT = 0.1
    dtype = HALF

    causal_mask = torch.tril(torch.ones((SEQ, SEQ), device=DEVICE, dtype=dtype))

    blocks = SEQ // BLOCK_SIZE
    causal_layout = torch.tril(torch.ones([HEADS, blocks, blocks]))

    attention = BlockSparseAttention(layout=causal_layout, block_size=BLOCK_SIZE, dropout=DROPOUT, num_heads=HEADS)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        multi_head = MultiHeadDispatch(
            seq_len=SEQ, dim_model=EMB, residual_dropout=DROPOUT, num_heads=HEADS, attention=attention
        ).to(DEVICE, dtype)

    query = torch.randn((BATCH, SEQ, EMB), requires_grad=True, device=DEVICE, dtype=dtype)

    att_val = multi_head(query=query, key=query, value=query, att_mask=causal_mask)

    def mem_use(fn: Callable[..., Any], kwargs: Any, title: str) -> None:
        start = time.time()
        max_memory = peak_bytes(lambda: [fn(**kwargs)].clear(), DEVICE.type) // 2**20
        stop = time.time()
        print(f"{title} - Peak memory use: {max_memory}MB - {round((stop - start) * 1e6) / 1e3}ms")

    pytorch_multihead = torch.nn.MultiheadAttention(EMB, HEADS, batch_first=True, device=DEVICE, dtype=dtype)

    mem_use(multi_head, {"query": query, "key": query, "value": query, "att_mask": causal_mask}, "Blocksparse")
    mem_use(pytorch_multihead, {"query": query, "key": query, "value": query, "attn_mask": causal_mask}, "PyTorch")

    assert [str(w.message) for w in said] == ["MultiHeadDispatch takes no seq_len: ignored"]
    assert att_val.shape == query.shape
    out = capsys.readouterr().out
    assert 0 < megabytes(out, "Blocksparse") < megabytes(out, "PyTorch")


def test_sparse_masks(capsys: pytest.CaptureFixture[str]) -> None:
    attention = ScaledDotProduct().to(DEVICE)

    inputs = torch.rand((16, 1024, 1024), device=DEVICE)

    mask = (torch.rand((1024, 1024)) < 0.9).to(DEVICE)
    max_memory = peak_bytes(lambda: [attention(q=inputs, k=inputs, v=inputs, mask=mask)].clear(), DEVICE.type)
    print(f"Dense - Peak memory use: {max_memory // 2**20}MB")

    few = (torch.rand((1024, 1024)) < 0.1).to(DEVICE)
    max_memory = peak_bytes(lambda: [attention(q=inputs, k=inputs, v=inputs, mask=few)].clear(), DEVICE.type)
    print(f"Sparse - Peak memory use: {max_memory // 2**20}MB")

    out, result = capsys.readouterr().out, inputs.nbytes // 2**20
    for title, seen in (("Dense", mask), ("Sparse", few)):
        assert result <= megabytes(out, title) < 1.1 * result
        agree(attention(q=inputs[:1], k=inputs[:1], v=inputs[:1], mask=seen), softmax(inputs[:1].double(), seen), 1e-5)
    page = peak_bytes(lambda: [softmax(inputs, mask)].clear(), DEVICE.type) // 2**20
    assert megabytes(out, "Sparse") < 0.6 * page, "of a dense run that holds all logits, as the page's does"


def softmax(x: Tensor, mask: Tensor) -> Tensor:
    """Attention to oneself with all logits in memory."""
    weights = (x @ x.mT / x.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf).softmax(-1)
    y: Tensor = weights @ x
    return y


def test_complex_patterns() -> None:
    H, W = 20, 30

    axial_pattern = AP.axial_2d_pattern(H, W)

    loc_2d_dist = AP.local_2d_pattern(H, W, distance=5, p=2.0)

    gaus_2d_dist = AP.local_2d_gausian_distribution(H, W, sigma=2)
    sparsity = 0.95
    num_non_zeros = int((H * W) ** 2 * (1 - sparsity))
    random_gaus_2d_pattern = AP.random_pattern_from_probability_matrix(gaus_2d_dist, num_non_zeros)

    combined_mask = axial_pattern | loc_2d_dist | random_gaus_2d_pattern

    rows, columns = torch.arange(H * W) // W, torch.arange(H * W) % W
    down, across = rows[:, None] - rows, columns[:, None] - columns
    assert torch.equal(axial_pattern, (down == 0) | (across == 0))
    assert torch.equal(loc_2d_dist, down**2 + across**2 < 25)
    assert random_gaus_2d_pattern.sum() == num_non_zeros
    assert combined_mask.shape == (600, 600)


@pytest.mark.filterwarnings("ignore:.* takes no")
@pytest.mark.parametrize("attention_name", sorted(ATTENTION_REGISTRY))
def test_any_attention(attention_name: str) -> None:
    SEQ = 1024
    MODEL = 384
    HEADS = 16
    DROPOUT = 0.1

    my_config = {
        "name": attention_name,
        "dropout": DROPOUT,
        "seq_len": SEQ,
        "num_heads": HEADS,
        "dim_model": MODEL,
        "dim_head": MODEL // HEADS,
        "attention_query_mask": torch.arange(SEQ)[:, None] < 2,
        "layout": torch.eye(SEQ // 32),
        "block_size": 32,
    }

    attention = build_attention(my_config)

    multi_head = MultiHeadDispatch(
        seq_len=SEQ, dim_model=MODEL, residual_dropout=DROPOUT, num_heads=HEADS, attention=attention
    ).to(DEVICE)

    with torch.no_grad():
        y = multi_head(torch.randn(1, SEQ, MODEL, device=DEVICE))
    assert y.shape == (1, SEQ, MODEL)
    assert y.isfinite().all()


@pytest.fixture
def mine() -> Iterator[str]:
    yield "my_nystrom"
    ATTENTION_REGISTRY.pop("my_nystrom", None)


def test_an_attention_of_one_s_own(mine: str) -> None:
    @dataclass
    class NystromSelfAttentionConfig(AttentionConfig):
        num_heads: int
        num_landmarks: int | None

    class NystromAttention(Attention):
        def __init__(
            self,
            dropout: float,
            num_heads: int,
            num_landmarks: int = 64,
            landmark_pooling: nn.Module | None = None,
            causal: bool = False,
            use_razavi_pinverse: bool = True,
            pinverse_original_init: bool = False,
            inv_iterations: int = 6,
            v_skip_connection: nn.Module | None = None,
            conv_kernel_size: int | None = None,
            *args: Any,
            **kwargs: Any,
        ) -> None:
            super().__init__()
            self.num_landmarks, self.inv_iterations = num_landmarks, inv_iterations

        def forward(self, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return q + k + v

    with pytest.raises(ValueError, match="registered already"):
        register_attention("nystrom", NystromSelfAttentionConfig)(NystromAttention)
    register_attention(mine, NystromSelfAttentionConfig)(NystromAttention)
    attention = build_attention({"name": mine, "dropout": 0.1, "num_heads": 2, "num_landmarks": 8, "inv_iterations": 3})
    assert (attention.num_landmarks, attention.inv_iterations) == (8, 3)
    assert MultiHeadDispatch(dim_model=8, num_heads=2, attention=attention)(torch.ones(2, 5, 8)).shape == (2, 5, 8)


def test_reversible_blocks() -> None:
    F, G = (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)).double() for _ in "FG")
    x1, x2 = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    y1 = x1 + F(x2)
    y2 = x2 + G(y1)

    agree(ReversibleBlock(F, G)(torch.cat([x1, x2], -1), f_args={}, g_args={}), torch.cat([y1, y2], -1))
    sequence = ReversibleSequence(nn.ModuleList([nn.ModuleList([F, G]), nn.ModuleList([F, G])]))
    z1 = y1 + F(y2)
    agree(sequence(torch.cat([x1, x2], -1), arg_route=(True, False)), torch.cat([z1, y2 + G(z1)], -1))

    agree(y2 - G(y1), x2)
    agree(y1 - F(y2 - G(y1)), x1)


def test_sparse_transformers() -> None:
    q, k, v = torch.randn(3, 2, 1024, 64, device=DEVICE)

    full_attn_tf = attention_impl(q, k, v, heads=4, attn_mode="all", recompute=True)
    full_attn_bs = blocksparse_attention_impl(q, k, v, heads=4, attn_mode="all", recompute=True)

    local_attn_bs = blocksparse_attention_impl(q, k, v, heads=4, attn_mode="local", local_attn_ctx=32, recompute=True)
    local_attn_tf = attention_impl(q, k, v, heads=4, attn_mode="local", local_attn_ctx=32, recompute=True)

    strided_attn_bs = blocksparse_attention_impl(
        q, k, v, heads=4, attn_mode="strided", local_attn_ctx=32, recompute=True
    )
    strided_attn_tf = attention_impl(q, k, v, heads=4, attn_mode="strided", local_attn_ctx=32, recompute=True)

    fixed = blocksparse_attention_impl(
        q, k, v, heads=4, attn_mode="fixed", local_attn_ctx=128, num_verts=4, vertsize=1, recompute=True
    )

    agree(full_attn_bs, full_attn_tf.double(), 1e-6)
    agree(local_attn_bs, local_attn_tf.double(), 1e-6)
    agree(strided_attn_bs, strided_attn_tf.double(), 1e-6)
    assert fixed.shape == q.shape


def test_memory_efficient_attention() -> None:
    B, M, K = 3, 32, 128
    kwargs: Any = {"device": DEVICE, "dtype": HALF}
    q = torch.randn([B, M, 8, K], **kwargs)
    k = torch.randn([B, M, 8, K], **kwargs)
    v = torch.randn([B, M, 8, K], **kwargs)

    def same(query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | None = None) -> Tensor:
        scale = 1 / query.shape[-1] ** 0.5
        query = query * scale
        attn = query @ key.transpose(-2, -1)
        if attn_bias is not None:
            attn = attn + attn_bias
        attn = attn.softmax(-1)
        return attn @ value

    heads = [t.transpose(1, 2) for t in (q, k, v)]
    y = xops.memory_efficient_attention(q, k, v)
    agree(y.transpose(1, 2), same(*heads).double(), 1e-5)

    y = xops.memory_efficient_attention(q, k, v, p=0.2)
    assert not torch.equal(y, xops.memory_efficient_attention(q, k, v, p=0.2))

    y = xops.memory_efficient_attention(q, k, v, attn_bias=xops.LowerTriangularMask())
    causal = torch.full((M, M), -torch.inf, device=DEVICE).triu(1)
    agree(y.transpose(1, 2), same(*heads, causal).double(), 1e-5)


def test_groups_of_heads() -> None:
    B, M, K = 3, 32, 128
    kwargs: Any = {"device": DEVICE, "dtype": HALF}
    q = torch.randn([B, M, 8, K], **kwargs)
    k = torch.randn([B, M, 2, K], **kwargs)
    v = torch.randn([B, M, 2, K], **kwargs)
    out_gqa = xops.memory_efficient_attention(
        q.reshape([B, M, 2, 4, K]),
        k.reshape([B, M, 2, 1, K]).expand([B, M, 2, 4, K]),
        v.reshape([B, M, 2, 1, K]).expand([B, M, 2, 4, K]),
    )
    wide = [t.repeat_interleave(4, 2) for t in (k, v)]
    agree(out_gqa.flatten(2, 3), xops.memory_efficient_attention(q, *wide).double(), 1e-5)


def test_blocks_of_a_batch(capsys: pytest.CaptureFixture[str]) -> None:
    K = 16
    dtype = HALF
    device = DEVICE
    list_x = [
        torch.randn([1, 3, 1, K], dtype=dtype, device=device),
        torch.randn([1, 6, 1, K], dtype=dtype, device=device),
        torch.randn([1, 2, 1, K], dtype=dtype, device=device),
    ]
    attn_bias, x = fmha.BlockDiagonalMask.from_tensor_list(list_x)
    linear = torch.nn.Linear(K, K * 3).to(device=device, dtype=dtype)
    q, k, v = linear(x).reshape([1, -1, 1, 3, K]).unbind(-2)
    out = fmha.memory_efficient_attention(q, k, v, attn_bias=attn_bias)
    list_out = attn_bias.split(out)
    print(list_out[0].shape)
    assert tuple(list_out[0].shape) == (1, 3, 1, K)
    assert capsys.readouterr().out == "torch.Size([1, 3, 1, 16])\n"
    each = [fmha.memory_efficient_attention(*linear(t).reshape([1, -1, 1, 3, K]).unbind(-2)) for t in list_x]
    agree(list_out, [y.double() for y in each], 1e-5)
