"""Feature maps, schemas, warnings and wrong use of xformers.components and xformers.factory."""

import sys
import warnings
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases import agree
from tests.compat.test_factory import SEQ, block, heads, tokens
from xfn.compat.components import MultiHeadDispatch, build_attention, build_feedforward, build_positional_embedding
from xfn.compat.components.attention import (
    ATTENTION_REGISTRY,
    FavorAttention,
    NystromAttention,
    OrthoFormerAttention,
    ScaledDotProduct,
)
from xfn.compat.components.attention.core import _create_random_sparsity
from xfn.compat.components.attention.feature_maps import MAPS, FeatureMapConfig, NormDistribution, SMOrf
from xfn.compat.components.feedforward import FEEDFORWARD_REGISTRY
from xfn.compat.components.positional_embedding import POSITION_EMBEDDING_REGISTRY
from xfn.compat.factory import (
    build,
    params_from_state_dict,
    xFormer,
    xFormerConfig,
    xFormerDecoderBlock,
    xFormerDecoderConfig,
    xFormerEncoderBlock,
    xFormerEncoderConfig,
)
from xfn.compat.factory.hydra_helper import import_xformer_config_schema

KNOWN: dict[str, Any] = {
    "dim_model": 16, "num_heads": 2, "seq_len": 16, "dim_head": 8, "layout": torch.ones(1, 1), "vocab_size": 5,
    "attention_query_mask": torch.arange(16)[:, None] < 2, "number_of_experts": 2,
}  # fmt: skip
REGISTERED = [
    *((build_attention, name) for name in ATTENTION_REGISTRY),
    *((build_feedforward, name) for name in FEEDFORWARD_REGISTRY),
    *((build_positional_embedding, name) for name in POSITION_EMBEDDING_REGISTRY),
]


@pytest.mark.parametrize(("make", "name"), REGISTERED, ids=lambda x: x if isinstance(x, str) else "")
def test_what_is_ignored_is_named_once(make: Any, name: str) -> None:
    """By builders, whatever else they are given, and by constructors."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = make({"name": name, **KNOWN, "colour": "red", "smell": 1})
        assert [str(w.message).endswith("colour, smell: ignored") or "colour" in str(w.message) for w in said] == [True]
        with pytest.raises(KeyError, match="telepathy"):
            make({"name": "telepathy"})
        said.clear()
        named = {field: value for field, value in KNOWN.items() if field in type(made).__init__.__code__.co_varnames}
        type(made)(**named, colour="red")
    assert [str(w.message) for w in said] == [f"{type(made).__name__} takes no colour: ignored"]


@pytest.mark.parametrize("kind", MAPS)
def test_features_estimate_the_kernel(kind: str) -> None:
    K, F = 4, 4096
    build_map = MAPS[kind]  # type: ignore[index]
    q, k = (torch.randn(2, 5, K, dtype=torch.float64) / 4 for _ in "qk")
    features = build_map(F, None, False, 0.0)
    found = features(q) @ features(k).mT
    assert features(q).shape == (2, 5, F)
    assert (found / (q @ k.mT / K**0.5).exp() - 1).abs().max() < 0.1
    scaled = build_map.from_config(FeatureMapConfig(str(kind), F, None, True, None))
    scaled.features = features.features
    ratio = scaled(q) / features(q)
    agree(ratio, ratio[..., :1, :1].expand_as(ratio), 1e-9)
    rows = build_map._get_random_ortho_matrix(3, K)
    agree(rows @ rows.mT, torch.eye(K, dtype=torch.float64).expand(3, K, K), 1e-5)
    longer = build_map._get_random_ortho_matrix(200, K, norm_distribution=NormDistribution.Xi)
    assert abs(longer.norm(dim=-1).square().mean() - K) < 0.5


@pytest.mark.parametrize("calls", [1, 3])
def test_features_are_drawn_anew_when_it_is_time(calls: int) -> None:
    net, alone, x = FavorAttention(dim_features=8, iter_before_redraw=calls), SMOrf(8, calls), torch.randn(2, 5, 4)
    for features in (lambda: (net(x, x, x), net.feature_map.features)[1], lambda: (alone(x), alone.features)[1]):
        seen = [features() for _ in range(2 * calls)]
        same = [torch.equal(a, b) for a, b in pairwise(seen)]
        assert same == [True] * (calls - 1) + [False] + [True] * (calls - 1)


def test_masks_that_landmarks_cannot_honour_are_ignored_and_named() -> None:
    x, mask = torch.randn(4, 9, 8), torch.rand(9, 9) < 0.5
    for net in (NystromAttention(num_heads=2, num_landmarks=3), OrthoFormerAttention(num_landmarks=3)):
        net = net.eval()
        with pytest.warns(UserWarning, match=f"{type(net).__name__} takes no att_mask: ignored") as said:
            y = net(x, x, x, att_mask=mask)
        assert len(said) == 1
        assert torch.equal(y, net(x, x, x))
    with pytest.raises(AssertionError, match="key padding"):
        NystromAttention(num_heads=2)(x, x, x, key_padding_mask=torch.ones(9, 2).bool())
    with pytest.raises(AssertionError, match="takes no attention mask"):
        MultiHeadDispatch(16, 2, NystromAttention(num_heads=2))(torch.ones(2, 9, 16), att_mask=mask)


def test_sparse_tensors_of_masks() -> None:
    """Of each example its own, and what is added."""
    x, mask = torch.randn(3, 9, 8), torch.rand(3, 9, 9) < 0.5
    mask |= torch.eye(9).bool()
    attend = ScaledDotProduct()
    want = attend(x, x, x, att_mask=mask)
    agree(attend(x, x, x, att_mask=mask.to_sparse()), want.double(), 1e-6)
    hidden = torch.zeros(3, 9, 9).masked_fill(~mask, -torch.inf)
    agree(attend(x, x, x, att_mask=hidden.to_sparse()), want.double(), 1e-6)
    thinned = _create_random_sparsity(torch.ones(2, 20, 20), 0.5)
    assert torch.equal(thinned[0], thinned[1])
    assert thinned[0].sum() % 4 == 0


def test_schemas_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: dict[tuple[str, str], Any] = {}
    store = SimpleNamespace(store=lambda name, node, group: stored.update({(group, name): node}))
    module = SimpleNamespace(ConfigStore=SimpleNamespace(instance=lambda: store))
    monkeypatch.setitem(sys.modules, "hydra.core.config_store", module)
    for package in ("hydra", "hydra.core"):
        monkeypatch.setitem(sys.modules, package, SimpleNamespace())
    import_xformer_config_schema()
    assert {group for group, _ in stored} == {"xformers/attention", "xformers/ff", "xformers/pe"}
    assert len(stored) == len(REGISTERED)
    favor = stored["xformers/attention", "favor_schema"]
    assert {"name", "dropout", "dim_features", "feature_map"} <= set(favor.__dataclass_fields__)


def test_weights_that_q_k_and_v_share() -> None:
    shared = {**heads(), "use_separate_proj_weight": False}
    config = xFormerConfig([block(multi_head_config=shared)])
    model, x = xFormer.from_config(config), tokens()
    apart = xFormer.from_config(xFormerConfig([block()]))
    state = model.state_dict()
    assert not any("k_proj.weight" in name or "v_proj.weight" in name for name in state)
    old = dict(state)
    for name, t in state.items():
        if name.endswith("q_proj.weight"):
            old |= {name.replace("q_proj", side): t for side in ("k_proj", "v_proj")}
    apart.load_state_dict(old)
    agree(model(x), apart(x).double(), 1e-5)
    model.load_state_dict(old)
    params = params_from_state_dict(config, old)
    assert torch.equal(build(config).apply(params, x)[0], model(x))
    broken = {name: t + 1 if name.endswith("k_proj.weight") else t for name, t in old.items()}
    with pytest.raises(RuntimeError, match="k_proj"):
        model.load_state_dict(broken)


@pytest.mark.parametrize("name", ["vocab", "sine", "learnable"])
def test_positions_of_another_width_are_projected(name: str) -> None:
    given = {"name": name, "seq_len": SEQ, "dim_model": 8} | ({"vocab_size": 11} if name == "vocab" else {})
    model: Any = xFormer.from_config(xFormerConfig([block(position_encoding_config=given)]))
    assert model.encoders[0].embedding_projector.weight.shape == (32, 8)
    x = tokens()
    y = model(x)
    assert y.shape == (2, SEQ, 32)
    y.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["linformer", "fourier_mix", "pooling", "lambda", "orthoformer", "visual"])
def test_what_cannot_be_causal_says_so(name: str) -> None:
    given = block(multi_head_config={**heads(name, causal=True), "use_rotary_embeddings": True}, num_layers=1)
    del given["block_type"], given["num_layers"]
    with pytest.warns(UserWarning, match="causal .* sees the future") as said:
        config = xFormerEncoderConfig(**given)
    assert len(said) == 1
    one: Any = xFormerEncoderBlock(config)
    assert not one.causal
    deaf = name in ("fourier_mix", "orthoformer", "pooling", "visual")
    with warnings.catch_warnings(record=True) as said:  # type: ignore[assignment]
        warnings.simplefilter("always")
        y = one(tokens(2, SEQ), input_mask=torch.arange(SEQ) < 9)
    assert ["input mask is ignored" in str(w.message) for w in said] == [True] * deaf
    assert y.shape == (2, SEQ, 32)


def test_blocks_say_what_their_attention_takes() -> None:
    def flags(name: str, **more: Any) -> list[bool]:
        attends = {"multi_head_config_masked": heads(name, **more), "multi_head_config_cross": heads(name, **more)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = xFormerDecoderConfig(**block("decoder", num_layers=1, **attends))
        one = xFormerDecoderBlock(config)
        return [one.supports_attention_mask, one.requires_same_k_q_dimensions, one.causal_attention]

    assert flags("scaled_dot_product") == [True, False, False]
    assert flags("scaled_dot_product", causal=True) == [True, False, True]
    assert flags("linformer", causal=True) == [False, True, False]
    assert flags("lambda") == [False, True, False]
    given = {"multi_head_config_cross": heads(causal=True), "position_encoding_config": None}
    one = xFormerDecoderBlock(xFormerDecoderConfig(**block("decoder", num_layers=1, **given)))
    x: Tensor = torch.randn(2, 7, 32)
    with pytest.raises(AssertionError, match="7 tokens, and the memory 9"):
        one(x, torch.randn(2, 9, 32))
    assert one(x, x).shape == x.shape
