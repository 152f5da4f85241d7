"""Programs of xformers.components with their imports changed, and its modules against formulas."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import xfn.compat.components.attention.attention_patterns as AP
from tests.cases import agree
from xfn.compat.components import (
    MultiHeadDispatch,
    ReversibleSequence,
    build_attention,
    build_feedforward,
    build_multi_head_attention,
    build_positional_embedding,
)
from xfn.compat.components.attention import (
    ATTENTION_REGISTRY,
    AttentionMask,
    BlockSparseAttention,
    ScaledDotProduct,
    SparseCS,
)
from xfn.compat.components.attention.core import bmm, scaled_dot_product_attention, scaled_query_key_softmax

SUPERSET: dict[str, Any] = {
    "dropout": 0.0, "causal": False, "seq_len": 16, "num_landmarks": 4, "conv_kernel_size": 3, "r": 0.5,
    "attention_query_mask": torch.arange(16)[:, None] < 2, "layout": torch.ones(1, 1), "block_size": 16, "k": 4,
}  # fmt: skip


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    logits = q.double() @ k.double().mT / math.sqrt(q.shape[-1])
    return logits.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0) @ v.double()


def heads_of(module: MultiHeadDispatch, x: Tensor, mask: Tensor) -> Tensor:
    """Dense attention with the module's projections."""
    own: Any = module.in_proj_container
    q, k, v = (m(x).unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for m in (own.q_proj, own.k_proj, own.v_proj))
    y = dense(q, k, v, mask).transpose(1, 2).flatten(2)
    return torch.nn.functional.linear(y, module.proj.weight.double(), module.proj.bias.double())


def test_the_program_of_blocksparse_attention() -> None:
    BATCH, HEADS, SEQ, EMB, BLOCK_SIZE, DROPOUT = 2, 8, 256, 64, 32, 0.1
    causal_mask = torch.tril(torch.ones((SEQ, SEQ)))
    blocks = SEQ // BLOCK_SIZE
    causal_layout = torch.tril(torch.ones([HEADS, blocks, blocks]))
    attention = BlockSparseAttention(layout=causal_layout, block_size=BLOCK_SIZE, dropout=DROPOUT, num_heads=HEADS)
    with pytest.warns(UserWarning, match="seq_len") as said:
        multi_head = MultiHeadDispatch(
            seq_len=SEQ, dim_model=EMB, residual_dropout=DROPOUT, num_heads=HEADS, attention=attention
        )
    assert len(said) == 1
    query = torch.randn((BATCH, SEQ, EMB), requires_grad=True)
    att_val = multi_head(query=query, key=query, value=query, att_mask=causal_mask)
    att_val.sum().backward()
    assert query.grad is not None
    multi_head.eval()
    want = heads_of(multi_head, query, causal_mask.bool())
    for mask in (causal_mask, causal_mask.bool(), AttentionMask.make_causal(SEQ), (1 - causal_mask) * -1e30):
        agree(multi_head(query=query, key=query, value=query, att_mask=mask), want, 1e-5)


@pytest.mark.parametrize("density", [0.9, 0.1])
def test_the_program_of_a_sparse_mask(density: float) -> None:
    attention = ScaledDotProduct()
    inputs = torch.rand((4, 128, 32))
    mask = torch.rand((128, 128)) < density
    want = dense(inputs, inputs, inputs, mask)
    agree(attention(q=inputs, k=inputs, v=inputs, mask=mask), want, 1e-5)
    agree(attention(inputs, inputs, inputs, SparseCS(mask)), want, 1e-5)
    agree(attention(inputs, inputs, inputs, mask.float().to_sparse()), want, 1e-5)
    agree(attention(inputs, inputs, inputs, AttentionMask.from_bool(mask)), want, 1e-5)


@pytest.mark.parametrize("attention_name", sorted(ATTENTION_REGISTRY))
def test_the_program_of_any_attention(attention_name: str) -> None:
    SEQ, MODEL, HEADS, DROPOUT = 16, 32, 4, 0.1
    my_config = {"name": attention_name, **SUPERSET, "dropout": DROPOUT, "num_heads": HEADS, "dim_model": MODEL}
    my_config |= {"dim_head": MODEL // HEADS, "no_such_thing": 3}
    with pytest.warns(UserWarning, match=f"{attention_name} takes no .*no_such_thing") as said:
        attention = build_attention(my_config)
    assert len(said) == 1
    multi_head = MultiHeadDispatch(dim_model=MODEL, residual_dropout=DROPOUT, num_heads=HEADS, attention=attention)
    x = torch.randn(2, SEQ, MODEL, requires_grad=True)
    y = multi_head(x)
    y.square().sum().backward()
    assert y.shape == x.shape
    assert x.grad is not None
    assert x.grad.isfinite().all()


CAUSAL = ["blocksparse", "compositional", "favor", "global", "local", "nystrom", "random", "scaled_dot_product"]


@pytest.mark.parametrize("name", CAUSAL)
def test_what_is_causal_sees_no_future(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = {"num_heads": 2, "dim_model": 8, "attention": {"name": name, **SUPERSET, "causal": True}}
        module = build_multi_head_attention(config).eval()
    x = torch.randn(2, 16, 8)
    later = torch.cat([x[:, :9], torch.randn(2, 7, 8)], 1)
    agree(module(later)[:, :9], module(x)[:, :9], 1e-5)
    assert not torch.allclose(module(later)[:, 9:], module(x)[:, 9:])


PADDED = ["blocksparse", "favor", "global", "lambda", "linformer", "local", "nystrom", "scaled_dot_product"]


@pytest.mark.parametrize("name", PADDED)
def test_padding_is_not_seen(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attention = {"name": name, **SUPERSET, "conv_kernel_size": None}
        module = build_multi_head_attention({"num_heads": 2, "dim_model": 8, "attention": attention}).eval()
    kept = torch.arange(16) < torch.tensor([[16], [11]])
    x = torch.randn(2, 16, 8)
    other = torch.where(kept[..., None], x, torch.randn_like(x))
    agree(module(x, key_padding_mask=kept)[kept], module(other, key_padding_mask=kept)[kept], 1e-5)


def test_masks_of_examples_and_of_heads() -> None:
    module = MultiHeadDispatch(dim_model=8, num_heads=2, attention=ScaledDotProduct())
    x = torch.randn(3, 5, 8)
    mask = torch.rand(3, 2, 5, 5) < 0.7
    want = heads_of(module, x, mask)
    agree(module(x, att_mask=mask), want, 1e-5)
    agree(module(x, att_mask=mask.flatten(0, 1)), want, 1e-5)
    agree(module(x, att_mask=mask[:, 0]), heads_of(module, x, mask[:, :1]), 1e-5)
    additive = torch.zeros(5, 5).masked_fill(~mask[0, 0], -torch.inf)
    agree(module(x, att_mask=additive), heads_of(module, x, mask[0, 0]), 1e-5)


def test_the_core_is_the_same_sparse_and_dense() -> None:
    q, k, v = torch.randn(3, 4, 10, 6)
    mask = torch.rand(10, 10) < 0.6
    sparse, full = scaled_query_key_softmax(q, k, SparseCS(mask)), scaled_query_key_softmax(q, k, mask)
    assert isinstance(sparse, SparseCS)
    agree(sparse.to_dense(), full, 1e-5)
    want = dense(q, k, v, mask)
    for got in (bmm(sparse, v), bmm(full, v), scaled_dot_product_attention(q, k, v, mask)):
        agree(got, want, 1e-5)
    agree(sparse.transpose().to_dense(), sparse.to_dense().mT)
    half = torch.rand(10, 10) < 0.5
    agree((sparse & half).to_dense(), sparse.to_dense() * half)
    agree((sparse * 2 + sparse).to_dense(), sparse.to_dense() * 3, 1e-6)


def test_the_program_of_patterns() -> None:
    H, W = 6, 7
    axial_pattern = AP.axial_2d_pattern(H, W)
    loc_2d_dist = AP.local_2d_pattern(H, W, distance=5, p=2.0)
    gaus_2d_dist = AP.local_2d_gausian_distribution(H, W, sigma=2)
    num_non_zeros = int((H * W) ** 2 * (1 - 0.95))
    random_gaus_2d_pattern = AP.random_pattern_from_probability_matrix(gaus_2d_dist, num_non_zeros)
    combined_mask = axial_pattern | loc_2d_dist | random_gaus_2d_pattern
    assert random_gaus_2d_pattern.sum() == num_non_zeros
    assert combined_mask.shape == (H * W, H * W)
    layout = AP.pattern_to_layout(AP.causal_1d_pattern(32), 16)
    assert layout.tolist() == [[1, 0], [1, 1]]
    assert AP.layout_to_pattern(layout, 2).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


LAYOUTS = {
    "fixed": "11110001 11110001 11110001 11110001 00011111 00011111 00011111 00011111",
    "variable": "11110000 11110000 11110000 11110000 10001111 10001111 10001111 10001111",
    "bslongformer": "11111111 11100000 11110000 10111000 10011100 10001110 10000111 10000011",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_those_of_old(name: str) -> None:
    layout = getattr(AP, f"quick_{name}_layout")(2, 16, 128)
    assert layout.dtype == torch.int64
    rows = [["".join(map(str, row)) for row in head] for head in layout.tolist()]
    assert rows == [LAYOUTS[name].split()] * 2


def test_one_warning_names_all_that_is_ignored() -> None:
    attention = {"name": "scaled_dot_product", "dropout": 0.1, "num_rules": 3}
    config: dict[str, Any] = {"num_heads": 2, "dim_model": 8, "residual_dropout": 0.1, "colour": 1}
    before = {**config, "attention": dict(attention)}
    config["attention"] = attention
    with pytest.warns(UserWarning, match=r"attention\.num_rules, colour") as said:
        build_multi_head_attention(config)
    assert len(said) == 1
    assert config == before
    with pytest.raises(KeyError, match="there are"):
        build_attention({"name": "no_such_attention"})


@pytest.mark.parametrize("name", ["MLP", "FusedMLP", "Conv2DFeedforward"])
def test_feedforwards(name: str) -> None:
    config = {"name": name, "dim_model": 6, "dropout": 0.0, "activation": "relu", "hidden_layer_multiplier": 2}
    with pytest.warns(UserWarning, match="number_of_experts") as said:
        module = build_feedforward({**config, "number_of_experts": 4})
    assert len(said) == 1
    x = torch.randn(2, 9, 6)
    if name == "Conv2DFeedforward":
        image = x.reshape(2, 3, 3, 6).swapdims(1, -1)
        want = module.conv_mlp(image).transpose(1, -1).flatten(1, 2)
    elif name == "MLP":
        want = module.mlp(x)
    else:
        own = module.mlp
        want = own[2](torch.relu(own[0](x) + own[1].bias)) + own[3].bias
        state = {k: v for k, v in module.state_dict().items() if not k.endswith("bias")}
        module.load_state_dict(state)
    agree(module(x), want, 1e-5)


def test_positions() -> None:
    tokens = torch.randint(10, (2, 5))
    words = build_positional_embedding({"name": "vocab", "dim_model": 8, "seq_len": 6, "vocab_size": 10})
    state = words.state_dict()
    want = state["word_embeddings.weight"][tokens] + state["position_embeddings.weight"][:5]
    agree(words(tokens), want, 1e-6)
    x = torch.randn(2, 5, 8)
    places = build_positional_embedding({"name": "learnable", "dim_model": 8, "seq_len": 5, "add_class_token": True})
    assert list(places.state_dict()) == ["pos_emb", "class_token"]
    agree(places(x), torch.cat([torch.zeros(2, 1, 8), x], 1) + places.pos_emb, 1e-6)
    angles = torch.arange(5)[:, None] * 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    table = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
    agree(build_positional_embedding({"name": "sine", "dim_model": 8, "seq_len": 5})(x), x + table, 1e-5)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_reversible_layers_are_those_of_the_plain_loop(p: float) -> None:
    torch.manual_seed(0)
    drop = torch.nn.Dropout(p)
    layer = lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU(), drop)
    net = ReversibleSequence([[layer(), layer()] for _ in range(3)]).double()
    assert list(net.state_dict())[:2] == ["blocks.0.f.net.0.weight", "blocks.0.f.net.0.bias"]
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    net(x).square().sum().backward()
    assert all(t.grad is not None for t in net.parameters())
    if not p:
        a, b = x.chunk(2, -1)
        for block in net.blocks:
            a = a + block.f(b)  # type: ignore[operator]
            b = b + block.g(a)  # type: ignore[operator]
        agree(net(x), torch.cat([a, b], -1))
        want = torch.autograd.grad(torch.cat([a, b], -1).square().sum(), list(net.parameters()))
        agree([t.grad for t in net.parameters()], list(want))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", sorted(ATTENTION_REGISTRY))
def test_what_is_traced_is_what_is_called(name: str) -> None:
    """By the tracer of old, which records no transform, in training and with other inputs than it was traced with."""
    attention = {**SUPERSET, "name": name, "dim_model": 16, "num_heads": 1, "dim_head": 16, "dropout": 0.1}
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        module = build_multi_head_attention(
            {"num_heads": 1, "dim_model": 16, "residual_dropout": 0.0, "attention": attention}
        )
    module(torch.randn(2, 16, 16))
    x, y = torch.randn(2, 2, 16, 16)
    torch.manual_seed(0)
    traced = torch.jit.trace(module, x, check_trace=False)
    torch.manual_seed(0)
    want = module(y)
    torch.manual_seed(0)
    agree(traced(y), want)
