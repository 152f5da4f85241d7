"""Modules of xformers.components: names in checkpoints, residuals, patches, chunks, sparsity configs, own parts."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, func

from tests.cases import agree
from xfn.compat.components import (
    Activation,
    MultiHeadDispatch,
    PostNorm,
    PreNorm,
    Residual,
    ReversibleSequence,
    SimplicialEmbedding,
    build_activation,
    build_attention,
    build_feedforward,
    build_multi_head_attention,
    build_patch_embedding,
    register_attention,
    register_feedforward,
)
from xfn.compat.components.attention import (
    ATTENTION_REGISTRY,
    Attention,
    AttentionConfig,
    AttentionMask,
    ScaledDotProduct,
)
from xfn.compat.components.attention.sparsity_config import (
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    DenseSparsityConfig,
    FixedSparsityConfig,
    VariableSparsityConfig,
)
from xfn.compat.components.attention.utils import bool_mask_to_additive, iterative_pinv, maybe_merge_masks
from xfn.compat.components.feedforward import FEEDFORWARD_REGISTRY, MLP, Feedforward, FeedforwardConfig
from xfn.compat.components.positional_embedding import RotaryEmbedding
from xfn.compat.components.residual import get_deepnorm_coefficients

PROJECTIONS = [f"in_proj_container.{x}_proj.{y}" for x in "qkv" for y in ("weight", "bias")]
NAMES: dict[str, tuple[dict[str, Any], str]] = {
    "scaled_dot_product": ({}, ""),
    "linformer": ({"seq_len": 8}, "E.weight F.weight"),
    "nystrom": ({"conv_kernel_size": 3}, "skip_connection.weight"),
    "favor": ({}, ""),
    "lambda": ({"seq_len": 8}, "rel_pos_emb"),
    "visual": (
        {},
        "block.0.weight block.0.bias block.2.conv0.weight block.2.conv0.bias block.2.conv_spatial.weight "
        "block.2.conv_spatial.bias block.2.conv1.weight block.2.conv1.bias block.3.weight block.3.bias",
    ),
    "compositional": (
        {"nonlinear": True},
        " ".join(PROJECTIONS) + " out_proj.weight out_proj.bias value_q.weight value_q.bias score_network.0.weight "
        "score_network.0.bias score_network.2.weight score_network.2.bias",
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_in_checkpoints(name: str) -> None:
    options, names = NAMES[name]
    config = {"num_heads": 2, "dim_model": 8, "attention": {"name": name, **options}, "use_rotary_embeddings": True}
    module = build_multi_head_attention(config)
    outer = [*(PROJECTIONS if module.attention.requires_input_projection else []), "proj.weight", "proj.bias"]
    inner = [f"attention.{n}" for n in names.split()]
    assert set(module.state_dict()) == {*outer, *inner, "rotary_embeddings.inv_freq"}


def test_modules_go_through_transforms() -> None:
    module = MultiHeadDispatch(8, 2, ScaledDotProduct(causal=True), use_rotary_embeddings=True).double()
    x = torch.randn(3, 2, 5, 8, dtype=torch.float64)
    params = dict(module.named_parameters())
    loss = lambda params, x: func.functional_call(module, params, (x,)).square().sum()
    each = func.vmap(func.grad(loss), (None, 0))(params, x)
    for name, t in func.grad(loss)(params, x.flatten(0, 1)).items():
        agree(each[name].sum(0), t)
    assert func.jvp(lambda x: loss(params, x), (x[0],), (x[0],))[1].isfinite()


@pytest.mark.parametrize("gate", ["top_2", "round_robin"])
def test_experts(gate: str) -> None:
    module = build_feedforward(
        {"name": "MixtureOfExperts", "dim_model": 4, "number_of_experts": 2, "gate": gate}
    ).eval()
    gates = ["gate.wg.weight", "moe.gate.wg.weight"] if gate == "top_2" else []
    maps = [f"mlp.{i}.{n}" for i in (0, 3) for n in ("weight", "bias")]
    assert list(module.state_dict()) == [*gates, *(f"moe.experts.{e}.{m}" for e in range(2) for m in maps)]
    x = torch.randn(2, 6, 4)
    every = torch.stack([expert(x) for expert in module.moe.experts], -2)
    in_turn = torch.eye(2)[torch.arange(6) % 2].expand(2, -1, -1)
    share = module.gate.wg(x).softmax(-1) if gate == "top_2" else in_turn
    agree(module(x), torch.einsum("bse,bsed->bsd", share, every), 1e-5)


def test_own_parts_are_registered() -> None:
    @dataclass
    class MineConfig(AttentionConfig):
        gain: float

    class Mine(Attention):
        def __init__(self, dropout: float, gain: float = 1.0, *args: Any, **kwargs: Any) -> None:
            super().__init__()
            self.gain = gain

        def forward(self, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return self.gain * v

    class MyFeedforward(MLP):
        pass

    register_attention("mine", MineConfig)(Mine)
    register_feedforward("mine", FeedforwardConfig)(MyFeedforward)
    try:
        assert build_attention({"name": "mine", "dropout": 0.0, "gain": 2.0}).gain == 2
        assert build_attention(MineConfig("mine", 0.0, 3.0)).gain == 3
        assert isinstance(build_feedforward({"name": "mine", "dim_model": 4}), MyFeedforward)
        with pytest.raises(ValueError, match="registered already"):
            register_attention("mine", MineConfig)(Mine)
        with pytest.raises(ValueError, match="subclass of Attention"):
            register_attention("other", MineConfig)(Feedforward)
    finally:
        del ATTENTION_REGISTRY["mine"], FEEDFORWARD_REGISTRY["mine"]


def test_a_wrong_shape_or_name_is_told_what_to_write() -> None:
    module = build_multi_head_attention(
        {"num_heads": 2, "dim_model": 8, "attention": {"name": "linformer", "seq_len": 5}}
    )
    for shape, says in (((5, 8), r"query is \[B, S, 8\]"), ((2, 5, 7), r"query has 7"), ((2, 6, 8), "write seq_len=6")):
        with pytest.raises(ValueError, match=says):
            module(torch.randn(shape))
    with pytest.raises(ValueError, match=r"no Activation is called 'rellu'; there are \['squared_relu'"):
        build_activation("rellu")
    with pytest.raises(KeyError, match="a config of attention says which"):
        build_attention({"dropout": 0.1})


def test_what_an_attention_does_not_take_is_refused() -> None:
    config = {"num_heads": 2, "dim_model": 8, "attention": {"name": "linformer", "seq_len": 5}}
    module, x = build_multi_head_attention(config), torch.randn(2, 5, 8)
    with pytest.raises(AssertionError, match="no attention mask"):
        module(x, att_mask=torch.ones(5, 5).bool())
    with pytest.raises(AssertionError, match="as many keys"):
        module(x, x[:, :3], x[:, :3])
    causal = MultiHeadDispatch(8, 2, ScaledDotProduct(causal=True))
    with pytest.raises(AssertionError, match="causal"):
        causal(x, x[:, :3], x[:, :3])


def test_masks() -> None:
    seen = torch.rand(4, 6) < 0.5
    mask = AttentionMask.from_bool(seen)
    assert mask.shape == (1, 4, 6)
    assert (mask.seq_len, mask.to_seq_len) == (4, 6)
    assert torch.equal(mask.to_bool()[0], seen)
    assert torch.equal(AttentionMask.from_multiplicative(seen.float()).values, mask.values)
    causal = AttentionMask.make_causal(4, 6)
    assert causal.is_causal
    assert torch.equal((mask + causal).to_bool()[0], seen & torch.ones(4, 6).tril().bool())
    assert not (mask + causal).is_causal
    assert causal.make_crop(2, 3).is_causal
    assert causal.make_crop(2, 3).shape == (1, 2, 3)
    assert causal.to(dtype=torch.float64).dtype == torch.float64


def test_masks_are_merged() -> None:
    kept = torch.tensor([[True, True, False], [True, False, False]])
    seen = torch.rand(4, 3, 3) < 0.7
    want = seen & kept.repeat_interleave(2, 0)[:, None]
    merged = maybe_merge_masks(seen, kept, 2, 3, 2)
    assert merged is not None
    assert torch.equal(merged, want)
    added = maybe_merge_masks(bool_mask_to_additive(seen), kept, 2, 3, 2)
    assert added is not None
    assert torch.equal(added == 0, want)
    assert maybe_merge_masks(seen, None, 2, 3, 2) is seen
    stochastic = torch.randn(2, 4, 4, dtype=torch.float64).softmax(-1) + torch.eye(4)
    agree(iterative_pinv(stochastic, 30), torch.linalg.inv(stochastic), 1e-6)


@pytest.mark.parametrize("name", list(Activation))
def test_activations(name: Activation) -> None:
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    relu = x.clamp(min=0)
    want = {
        "squared_relu": relu**2,
        "gelu": x * (1 + (x / 2**0.5).erf()) / 2,
        "leaky_relu": torch.where(x < 0, 0.01 * x, x),
        "relu": relu,
        "smelu": torch.where(x.abs() < 2, (x + 2) ** 2 / 8, relu),
        "star_relu": 0.8944 * relu**2 - 0.4472,
    }
    agree(build_activation(name)(x), want[name.value])
    agree(build_activation(None)(x), x)


def test_residuals_and_norms() -> None:
    x = torch.randn(2, 3, 8)
    layer = torch.nn.Linear(8, 8)
    norm = lambda x: torch.nn.functional.layer_norm(x, (8,))
    agree(Residual(PreNorm(8, layer))(inputs=[x]), x + layer(norm(x)), 1e-5)
    agree(PostNorm(8, Residual(layer, 2.0))(inputs=[x]), norm(2 * x + layer(x)), 1e-5)
    agree(PreNorm(8, layer, "skip")([x]), layer(x), 1e-6)
    assert list(PreNorm(8, layer).state_dict()) == ["norm.weight", "norm.bias", "sublayer.weight", "sublayer.bias"]

    class Same(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            assert a is b is not c
            return a + c

    agree(PreNorm(8, Same())([x, x, x + 1]), 2 * norm(x), 1e-5)
    encoder, decoder = get_deepnorm_coefficients(6, 0)
    assert decoder is None
    assert encoder == pytest.approx((12**0.25, 48**-0.25))


@pytest.mark.parametrize(("stride", "padding"), [(4, 0), (2, 1)])
def test_patches(stride: int, padding: int) -> None:
    sizes = {"in_channels": 3, "out_channels": 5, "kernel_size": 4, "stride": stride, "padding": padding}
    embed = build_patch_embedding(sizes)
    assert list(embed.state_dict()) == ["1.weight", "1.bias"]
    image = torch.randn(2, 3, 8, 8)
    want = embed[1](image).flatten(2).mT
    agree(embed(image), want, 1e-5)
    agree(embed(image.flatten(2).mT), want, 1e-5)
    with pytest.raises(NotImplementedError, match="pool_type"):
        build_patch_embedding({**sizes, "pool_type": "MAX"})


def test_chunks_on_a_simplex() -> None:
    x = torch.randn(2, 3, 6)
    kept = x.clone()
    agree(SimplicialEmbedding(2, 0.5)(x), (x.unflatten(-1, (2, 3)) / 0.5).softmax(-1).flatten(-2), 1e-5)
    assert torch.equal(x, kept)
    with pytest.raises(AssertionError, match="chunks"):
        SimplicialEmbedding(4)(x)


def test_rotary_turns_by_the_distance() -> None:
    x = torch.randn(1, 1, 1, 8).expand(1, 1, 6, 8)
    q, k = RotaryEmbedding(8)(x, x)
    products = (q @ k.mT)[0, 0]
    for i in range(5):
        agree(products.diagonal(-i), products[i, 0].expand(6 - i), 1e-5)


def test_reversible_layers_replay_what_they_dropped() -> None:
    layer = lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    net = ReversibleSequence([[layer(), layer()] for _ in range(2)]).double()
    x, d = torch.randn(2, 3, 5, 8, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        torch.manual_seed(1)
        y: Tensor = net(x)
        return y.square().sum()

    x.requires_grad_()
    (slope,) = torch.autograd.grad(loss(x), x)
    with torch.no_grad():
        step = 1e-5
        agree((slope * d).sum(), (loss(x + step * d) - loss(x - step * d)) / (2 * step), 1e-6)


def test_sparsity_configs() -> None:
    assert DenseSparsityConfig(2, 16).make_layout(64).sum() == 32
    uni = FixedSparsityConfig(1, 16, attention="unidirectional").make_layout(128)[0]
    rows = "10000000 11000000 11100000 11110000 00011000 00011100 00011110 00011111"
    assert ["".join(map(str, row)) for row in uni.tolist()] == rows.split()
    two = FixedSparsityConfig(2, 16, True, num_different_global_patterns=2).make_layout(128)
    assert two.all(1).nonzero().tolist() == [[0, 3], [0, 7], [1, 2], [1, 6]]
    for n in range(2, 6):
        layout = BigBirdSparsityConfig(1, 16, num_random_blocks=2, num_sliding_window_blocks=1).make_layout(16 * n)
        assert layout.shape == (1, n, n)
    for call in (
        lambda: FixedSparsityConfig(1, num_global_blocks=3),
        lambda: FixedSparsityConfig(1, attention="unidirectional", horizontal_global_attention=True),
        lambda: FixedSparsityConfig(1, num_different_global_patterns=2),
        lambda: VariableSparsityConfig(1, global_block_indices=[3], global_block_end_indices=[2]),
        lambda: BSLongformerSparsityConfig(1, num_sliding_window_blocks=9).make_layout(64),
        lambda: DenseSparsityConfig(1).make_layout(100),
    ):
        with pytest.raises(ValueError, match=r"must|exceed|shows|differ"):
            call()
    with pytest.raises(NotImplementedError, match="unidirectional"):
        BSLongformerSparsityConfig(1, attention="sideways")


@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("q_compose", [False, True])
@pytest.mark.parametrize("rule", ["product", "linear", "mlp"])
def test_heads_and_rules_by_the_formula(rule: str, q_compose: bool, one: bool) -> None:
    options = {"qk_rule": rule == "product", "nonlinear": rule == "mlp", "q_compose": q_compose, "num_rules": 4}
    net = build_attention({"name": "compositional", "dim_model": 8, "num_heads": 2, **options}).double()
    x, k, v = torch.randn(3, 3, 5, 8, dtype=torch.float64)
    k, v = (x, x) if one else (k, v)
    mask, project = torch.ones(5, 5).tril().bool(), net.in_proj_container.q_proj
    heads, keys = (project(t).unflatten(-1, (2, 4)).transpose(1, 2) for t in (x, k))
    rules = project(v).unflatten(-1, (4, 2)).transpose(1, 2)
    seen = (heads @ keys.mT / 2).masked_fill(~mask, -torch.inf).softmax(-1)
    found = torch.einsum("bhmn,brnv->bmhrv", seen, rules)
    asked = net.value_q(heads.transpose(1, 2) / 2) if q_compose else net.value_q(x).unflatten(-1, (2, 4))
    if rule == "product":
        scores = torch.einsum("bmhs,bmhrs->bmhr", asked / 2, net.value_k(found))
    else:
        both = torch.cat([found, asked.unsqueeze(-2).expand(-1, -1, -1, 4, -1)], -1)
        scores = net.score_network(both).squeeze(-1)
    chosen = torch.einsum("bmhr,bmhrv->bmhv", scores.softmax(-1), found).flatten(-2)
    agree(net(x, k, v, mask), net.out_proj(chosen))
