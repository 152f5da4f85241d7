"""Models of the old factory: the pages' own programs, what is computed, warnings and errors."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, relu, scaled_dot_product_attention

import xfn
from xfn.bias import Bias
from xfn.compat.factory import (
    BasicLayerConfig,
    ResidualNormStyle,
    get_hierarchical_configuration,
    xFormer,
    xFormerConfig,
    xFormerDecoderBlock,
    xFormerDecoderConfig,
    xFormerEncoderBlock,
    xFormerEncoderConfig,
    xFormerStackConfig,
)
from xfn.compat.factory.parts import ATTENTION
from xfn.factory.sublayer import Given

EMB, SEQ, BATCH, VOCAB, HEADS = 32, 64, 2, 11, 4


def heads(name: str = "scaled_dot_product", **fields: Any) -> dict[str, Any]:
    return {
        "num_heads": HEADS,
        "residual_dropout": 0,
        "attention": {"name": name, "dropout": 0, "seq_len": SEQ, **fields},
    }


def block(kind: str = "encoder", style: str = "pre", **more: Any) -> dict[str, Any]:
    attends: dict[str, Any] = {"multi_head_config": heads()}
    if kind == "decoder":
        attends = {"multi_head_config_masked": heads(causal=True), "multi_head_config_cross": heads()}
    return {
        "block_type": kind,
        "num_layers": 2,
        "dim_model": EMB,
        "residual_norm_style": style,
        "position_encoding_config": {"name": "vocab", "seq_len": SEQ, "vocab_size": VOCAB},
        "feedforward_config": {"name": "MLP", "dropout": 0, "activation": "relu", "hidden_layer_multiplier": 4},
        **attends,
        **more,
    }


def tokens(*shape: int) -> Tensor:
    return (torch.rand(shape or (BATCH, SEQ)) * VOCAB).abs().to(torch.int)


def test_the_page_s_encoder_block() -> None:
    config = block(multi_head_config=heads("linformer"))
    del config["block_type"], config["num_layers"]
    x = tokens()
    encoder = xFormerEncoderBlock(xFormerEncoderConfig(**config))
    y = encoder(x, x, x)
    assert y.shape == (BATCH, SEQ, EMB)
    assert torch.equal(y, encoder(x))
    with pytest.raises(AssertionError, match="Linformer takes no attention mask"):
        encoder(x, torch.ones(SEQ, SEQ).bool())


def test_the_page_s_model() -> None:
    decoder = block(
        "decoder",
        num_layers=3,
        multi_head_config_masked=heads("nystrom", causal=True),
        multi_head_config_cross=heads("favor", causal=True),
    )
    encoder = block(
        num_layers=3, multi_head_config=heads("linformer", causal=False), reversible=False,
        simplicial_embeddings={"L": 4, "temperature": 0.5},
    )  # fmt: skip
    my_config = [encoder, decoder]
    before = copy.deepcopy(my_config)
    with pytest.warns(UserWarning, match="nystrom.*exact attention stands in") as told:
        config = xFormerConfig(my_config)
    assert len(told) == 1
    assert my_config == before
    model = xFormer.from_config(config)
    x = tokens()
    y = model(src=x, tgt=x)
    assert y.shape == (BATCH, SEQ, EMB)
    y.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    later = torch.cat([x[:, :9], 1 - x[:, 9:].clamp(0, 1)], 1)
    torch.testing.assert_close(model(x, later)[:, :9], y[:, :9], rtol=1e-4, atol=1e-5)
    simplices = encoded(model, x)
    torch.testing.assert_close(simplices.unflatten(-1, (4, -1)).sum(-1), torch.ones(BATCH, SEQ, 4))
    again = xFormer.from_config(config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x, x), y)


@pytest.mark.parametrize("name", ["nystrom", "orthoformer"])
def test_landmarks_of_the_whole_target_are_warned_of(name: str) -> None:
    decoder = block(
        "decoder", multi_head_config_masked=heads("favor", causal=True), multi_head_config_cross=heads(name)
    )
    with pytest.warns(UserWarning, match=r"causal \((Nystrom|Ortho) looks across for all\)"):
        config = xFormerConfig([block(multi_head_config=heads("favor")), decoder])
    assert xFormer.from_config(config)(tokens(), tokens()).shape == (BATCH, SEQ, EMB)


def encoded(model: xFormer, x: Tensor) -> Tensor:
    """What the encoder alone makes of x."""
    assert model.made.encoder is not None
    return model.made.encoder.run(model.tree()["encoder"], x, Bias(()), {}, None)


@pytest.mark.parametrize(
    ("mechanism", "rotary"), [("scaled_dot_product", False), ("scaled_dot_product", True), ("pooling", False)]
)
def test_the_page_s_pyramid(mechanism: str, rotary: bool) -> None:
    image_size = 32
    base_hierarchical_configs = [
        BasicLayerConfig(
            embedding=64, attention_mechanism=mechanism, patch_size=7, stride=4, padding=2,
            seq_len=image_size * image_size // 16, feedforward="MLP", repeat_layer=2,
        ),
        BasicLayerConfig(
            embedding=128, attention_mechanism=mechanism, patch_size=3, stride=2, padding=1,
            seq_len=image_size * image_size // 64, feedforward="MLP",
        ),
    ]  # fmt: skip
    xformer_config = get_hierarchical_configuration(
        base_hierarchical_configs,
        residual_norm_style="pre",
        use_rotary_embeddings=rotary,
        mlp_multiplier=4,
        dim_head=32,
    )
    model = xFormer.from_config(xFormerConfig(xformer_config))
    x = torch.randn(BATCH, 3, image_size, image_size)
    y = model(x)
    assert y.shape == (BATCH, 16, 128)
    assert torch.equal(model(x.flatten(2).transpose(1, 2)), y)
    pairs = [name for name in model.state_dict() if "patch_emb.1.weight" in name]
    assert pairs == ["encoders.0.patch_emb.1.weight", "encoders.2.patch_emb.1.weight"]


def hand_written(state: dict[str, Tensor], side: str, style: str, at: int, x: Tensor, memory: Any = None) -> Tensor:
    """One layer, from the parameters of a checkpoint by their names."""

    def norm(t: Tensor, name: str) -> Tensor:
        return layer_norm(t, (EMB,), state[f"{name}.weight"], state[f"{name}.bias"])

    def sublayer(name: str, f: Any, x: Tensor, *others: Tensor) -> Tensor:
        name = f"{side}s.{at}.{name}"
        if style == "post":
            return norm(x + f(f"{name}.sublayer.layer", x, *others), f"{name}.norm")
        last = f"{name}.norm.weight" in state
        inner = f"{name}.sublayer.layer" if last else f"{name}.layer"
        y = x + f(f"{inner}.sublayer", *(norm(t, f"{inner}.norm") for t in (x, *others)))
        return norm(y, f"{name}.norm") if last else y

    def project(name: str, t: Tensor) -> Tensor:
        return linear(t, state[f"{name}.weight"], state[f"{name}.bias"])

    def attend(name: str, x: Tensor, context: Any = None) -> Tensor:
        seen = x if context is None else context
        q, k, v = (
            project(f"{name}.in_proj_container.{n}_proj", t).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for n, t in (("q", x), ("k", seen), ("v", seen))
        )
        y = scaled_dot_product_attention(q, k, v, is_causal=side == "decoder" and context is None)
        return project(f"{name}.proj", y.transpose(1, 2).flatten(2))

    def feed(name: str, x: Tensor) -> Tensor:
        return project(f"{name}.mlp.3", relu(project(f"{name}.mlp.0", x)))

    x = sublayer("wrap_att", attend, x)
    if memory is not None:
        x = sublayer("wrap_cross", attend, x, memory)
    return sublayer("wrap_ff", feed, x)


def embedded(state: dict[str, Tensor], side: str, x: Tensor) -> Tensor:
    seats = state[f"{side}s.0.pose_encoding.position_embeddings.weight"][: x.shape[1]]
    return state[f"{side}s.0.pose_encoding.word_embeddings.weight"][x.long()] + seats


@pytest.mark.parametrize("style", ["pre", "post"])
def test_a_model_is_what_one_writes_by_hand(style: str) -> None:
    model = xFormer.from_config(xFormerConfig([block(style=style), block("decoder", style)])).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    state, source, target = model.state_dict(), tokens(2, 9), tokens(2, 7)
    x, y = embedded(state, "encoder", source), embedded(state, "decoder", target)
    for at in range(2):
        x = hand_written(state, "encoder", style, at, x)
    for at in range(2):
        y = hand_written(state, "decoder", style, at, y, x)
    torch.testing.assert_close(model(source, target), y, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(encoded(model, source), x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("style", ["pre", "post"])
def test_a_block_is_one_layer(style: str) -> None:
    config = block("decoder", style, num_layers=1, position_encoding_config=None)
    one = xFormerDecoderBlock.from_config(xFormerDecoderConfig(**config)).double()
    x, memory = torch.randn(2, 2, 7, EMB).double()
    state = {f"decoders.0.{name}": t for name, t in one.state_dict().items()}
    torch.testing.assert_close(
        one(x, memory), hand_written(state, "decoder", style, 0, x, memory), rtol=1e-7, atol=1e-7
    )


def test_masks_hide() -> None:
    model = xFormer.from_config(xFormerConfig([block(), block("decoder")]))
    x, there = tokens(2, 9), torch.arange(9) < torch.tensor([[5], [9]])
    y = model(x, x[:, :4], encoder_input_mask=there)
    torch.testing.assert_close(y[:1], model(x[:1, :5], x[:1, :4]), rtol=1e-4, atol=1e-5)
    assert torch.equal(y, model(x, x[:, :4], encoder_input_mask=there.float()))
    with pytest.raises(ValueError, match="True and False, or 1 and 0"):
        model(x, encoder_input_mask=there * 0.5)
    added = torch.zeros(2, 9).masked_fill(~there, -torch.inf)
    torch.testing.assert_close(y, model(x, x[:, :4], encoder_input_mask=added), rtol=1e-4, atol=1e-5)
    encoder = xFormerEncoderBlock(xFormerEncoderConfig(**block(num_layers=1)))
    past = torch.ones(9, 9).tril().bool()
    torch.testing.assert_close(encoder(x, past)[:, :4], encoder(x[:, :4], past[:4, :4]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_one_side_alone_is_a_model(side: str) -> None:
    assert xFormer(block(side))(tokens()).shape == (BATCH, SEQ, EMB)


def test_configs_come_as_lists_dicts_and_objects() -> None:
    one = block()
    alike = [one, [one], {"first": one}, [xFormerEncoderConfig(**one)]]
    alike.append([xFormerStackConfig(xFormerEncoderConfig(**{**one, "num_layers": 5}), 2)])
    stages = [xFormerConfig(given).stack_configs[0].stage for given in alike]
    assert all(stage == stages[0] for stage in stages)
    config = xFormerConfig(block(residual_norm_style=ResidualNormStyle.DeepNorm))
    first, second = (xFormer.from_config(config) for _ in range(2))
    assert list(first.state_dict()) == list(second.state_dict())


def test_everything_that_is_ignored_is_named_in_one_warning() -> None:
    given = block(colour="red", reversible=False)
    given["multi_head_config"] = {**heads(depth=3), "smell": 1}
    given["feedforward_config"]["speed"] = 7
    with pytest.warns(UserWarning, match="ignored") as told:
        xFormer.from_config(xFormerConfig([given, given], flavour="sweet"))
    names = ["attention.depth", "colour", "feedforward_config.speed", "flavour", "multi_head_config.smell"]
    assert [str(w.message).partition(": ")[2] for w in told] == [", ".join(names)]


WRONG: dict[str, tuple[type[Exception], Any]] = {
    "block_type": (AssertionError, [block(block_type="middle")]),
    "reversible, or none": (AssertionError, [block(reversible=True), block()]),
    "have deepnorm": (AssertionError, [block(style="deepnorm"), block()]),
    "no deepnorm": (AssertionError, [block(style="deepnorm", reversible=True)]),
    "not reversible": (AssertionError, [block("decoder", reversible=True)]),
    "divide into L": (AssertionError, [block(simplicial_embeddings={"L": 5})]),
    "no ResidualNormStyle is called 'before'; there are": (ValueError, [block(style="before")]),
    "no normalization is called 'batch'; there are": (ValueError, [block(normalization="batch")]),
    "no attention is called": (KeyError, [block(multi_head_config=heads("telepathy"))]),
    "pool": (NotImplementedError, [block(patch_embedding_config={"pool_type": "max"})]),
}


@pytest.mark.parametrize("says", [name for name in WRONG if name != "pool"])
def test_wrong_use_is_refused(says: str) -> None:
    kind, given = WRONG[says]
    with pytest.raises(kind, match=says):
        xFormer.from_config(xFormerConfig(given))


def test_decoders_that_would_see_the_memory_in_two_ways_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="all decoders have one style"):
        xFormer([block(), block("decoder", "pre"), block("decoder", "post", position_encoding_config=None)])


def test_a_cross_attention_whose_keys_are_projected_like_its_queries_sees_the_normed_memory() -> None:
    config = block(
        "decoder", num_layers=1, position_encoding_config=None, multi_head_config_cross=heads("compositional")
    )
    one = xFormerDecoderBlock(xFormerDecoderConfig(**config)).double()
    for name, t in one.named_parameters():
        if ".norm." in name:
            t.data += torch.rand_like(t)
    x, memory = torch.randn(2, 2, 7, EMB).double()
    params, stack = one.tree()["decoder"], one.made.decoder
    assert stack is not None
    layer, (own, cross, feedforward) = params["layers"]["0"], stack.stages[0].sublayers
    nothing = Given(Bias(()), None, {})
    x1 = own.apply(layer, x, nothing, {}, None)
    x2 = x1 + cross.part.apply(layer["cross"], *(xfn.layer_norm(layer["cross_norm"], y) for y in (x1, memory)))
    want = xfn.layer_norm(params["norm"], feedforward.apply(layer, x2, nothing, {}, None))
    torch.testing.assert_close(one(x, memory), want, rtol=1e-9, atol=1e-9)


def test_patches_of_another_kind_are_refused() -> None:
    kind, given = WRONG["pool"]
    with pytest.raises(kind, match="convolution"):
        xFormerConfig(given)
    with pytest.raises(AssertionError, match="tied"):
        xFormer([block(reversible=True), block("decoder")], tie_embedding_weights=True)


def test_tied_embeddings_are_one() -> None:
    model: Any = xFormer([block(), block("decoder")], tie_embedding_weights=True)
    assert model.encoders[0].pose_encoding is model.decoders[0].pose_encoding
    x = tokens()
    model(x, x).square().sum().backward()
    assert sum("pose_encoding" in name for name, _ in model.named_parameters()) == 2


@pytest.mark.parametrize("weights", ["vit", "moco", "small", "timm"])
def test_weights_are_drawn_by_name(weights: str) -> None:
    model = xFormer([block()], weight_init=weights)
    assert all(t.isfinite().all() for t in model.state_dict().values())
    before = model.state_dict()["encoders.0.wrap_ff.layer.sublayer.mlp.0.weight"].clone()
    model.init_weights(weights)
    assert not torch.equal(before, model.state_dict()["encoders.0.wrap_ff.layer.sublayer.mlp.0.weight"])


NEEDS: dict[str, dict[str, Any]] = {
    "global": {"attention_query_mask": torch.arange(SEQ)[:, None] < 2},
    "blocksparse": {"layout": torch.ones(HEADS, SEQ // 16, SEQ // 16, dtype=torch.int64), "block_size": 16},
}


@pytest.mark.parametrize("reversible", [False, True])
@pytest.mark.parametrize("name", ATTENTION)
def test_every_mechanism_is_built_by_name_and_comes_back(name: str, reversible: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = [
            xFormer(block(multi_head_config=heads(name, **NEEDS.get(name, {})), reversible=reversible)) for _ in "ab"
        ]
    x = tokens()
    y = made[0].eval()(x)
    assert y.shape == (BATCH, SEQ, EMB)
    made[1].load_state_dict(made[0].state_dict())
    torch.testing.assert_close(made[1].eval()(x), y)
    if not reversible:
        torch.testing.assert_close(pickle.loads(pickle.dumps(made[0]))(x), y)
