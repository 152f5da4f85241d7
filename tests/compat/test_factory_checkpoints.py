"""Checkpoints of the old factory: their names, what older ones call otherwise, and what they lack."""

import warnings
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor

from xfn import random
from xfn._core.params import leaves
from xfn.compat.components import build_attention, build_feedforward
from xfn.compat.factory import build, params_from_state_dict, xFormer, xFormerConfig

from .test_factory import block, heads, tokens

LAYER = [
    f"{outer}.{{inner}}.{name}.{kind}"
    for outer, names in (
        ("wrap_att", ["in_proj_container.q_proj", "in_proj_container.k_proj", "in_proj_container.v_proj", "proj"]),
        ("wrap_cross", ["in_proj_container.q_proj", "in_proj_container.k_proj", "in_proj_container.v_proj", "proj"]),
        ("wrap_ff", ["mlp.0", "mlp.3"]),
    )
    for name in names
    for kind in ("weight", "bias")
]
NORMS = [f"{outer}.{{norm}}.{kind}" for outer in ("wrap_att", "wrap_cross", "wrap_ff") for kind in ("weight", "bias")]
STYLES = {
    "pre": {"inner": "layer.sublayer", "norm": "layer.norm"},
    "post": {"inner": "sublayer.layer", "norm": "norm"},
    "deepnorm": {"inner": "sublayer.layer", "norm": "norm"},
}


def expected(style: str, layers: int) -> set[str]:
    """The names of an encoder and a decoder, as checkpoints have them."""
    found: set[str] = set()
    for side in ("encoders", "decoders"):
        for table in ("word", "position"):
            found.add(f"{side}.0.pose_encoding.{table}_embeddings.weight")
        for at in range(layers):
            for name in LAYER + NORMS:
                if "cross" in name and side == "encoders":
                    continue
                full = name.format(**STYLES[style])
                if style == "pre" and at == layers - 1:
                    full = full.replace("wrap_ff.", "wrap_ff.sublayer.")
                found.add(f"{side}.{at}.{full}")
        if style == "pre":
            found |= {f"{side}.{layers - 1}.wrap_ff.norm.{kind}" for kind in ("weight", "bias")}
    return found


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("layers", [1, 3])
def test_a_checkpoint_has_the_old_names(style: str, layers: int) -> None:
    config = xFormerConfig([block(style=style, num_layers=layers), block("decoder", style, num_layers=layers)])
    model = xFormer.from_config(config)
    assert set(model.state_dict()) == expected(style, layers)
    again = xFormer.from_config(config)
    again.load_state_dict(model.state_dict())
    x = tokens()
    y = model(x, x)
    assert torch.equal(again(x, x), y)
    params = params_from_state_dict(config, model.state_dict())
    assert torch.equal(build(config).apply(params, x, x)[0], y)
    assert set(leaves(params)) == set(leaves(build(config).init(torch.tensor([0, 1]))))


CONV = {"name": "Conv2DFeedforward", "activation": "gelu", "hidden_layer_multiplier": 2}
KINDS: dict[str, list[Any]] = {
    "reversible": [block(reversible=True)],
    "stages": [block(), block(dim_model=16, position_encoding_config=None)],
    "learnable": [block(position_encoding_config={"name": "learnable", "seq_len": 64, "add_class_token": True})],
    "fused": [block(feedforward_config={"name": "FusedMLP", "activation": "relu", "hidden_layer_multiplier": 2})],
    "no biases": [block(multi_head_config={**heads(), "bias": (False, False, True, False)})],
    "rotary": [block(multi_head_config={**heads(), "use_rotary_embeddings": True})],
    "favor": [block(multi_head_config=heads("favor"))],
    "visual": [block(multi_head_config=heads("visual"))],
    "compositional": [block(multi_head_config=heads("compositional", nonlinear=True, use_separate_proj_weight=True))],
    "conv": [
        block(feedforward_config={"name": "Conv2DFeedforward", "activation": "gelu", "hidden_layer_multiplier": 2})
    ],
    "nystrom": [block(multi_head_config=heads("nystrom", conv_kernel_size=3, num_landmarks=8))],
}


@pytest.mark.parametrize("kind", KINDS)
def test_modules_and_functions_read_one_checkpoint(kind: str) -> None:
    config = xFormerConfig(KINDS[kind])
    model = xFormer.from_config(config).eval()
    x = torch.randn(2, 64, 32) if kind == "learnable" else tokens()
    params = params_from_state_dict(config, model.state_dict())
    assert torch.equal(build(config).apply(params, x)[0], model(x))


def test_a_batch_draws_what_its_examples_draw() -> None:
    given = {**heads(), "residual_dropout": 0.5}
    sides = {"multi_head_config_masked": given, "multi_head_config_cross": given}
    for blocks in ([block(multi_head_config=given)], [block(multi_head_config=given), block("decoder", **sides)]):
        init, apply = build(xFormerConfig(blocks))
        params, x, key = init(random.key(0)), tokens(), random.key(3)
        y = apply(params, x, key=key)[0]
        for i, one in enumerate(x):
            torch.testing.assert_close(apply(params, one, key=random.fold_in(key, i))[0], y[i])
        assert not torch.allclose(apply(params, x)[0], y)


@pytest.mark.parametrize(("kind", "at"), [("visual", 0), ("conv", 1)])
def test_convolutions_lie_as_they_did(kind: str, at: int) -> None:
    """The module of that name reads them, and gives the same."""
    model = xFormer.from_config(xFormerConfig(KINDS[kind])).eval()
    made: Any = (
        build_attention({"name": "visual", "dim_model": 32})
        if kind == "visual"
        else build_feedforward({**CONV, "dim_model": 32})
    )
    sublayer = model.made.encoder.stages[0].sublayers[at]  # type: ignore[union-attr]
    prefix = f"encoders.0.{('wrap_att', 'wrap_ff')[at]}.layer.sublayer.{('attention.', '')[at]}"
    for name, t in model.named_parameters():
        t.data += torch.rand_like(t) * name.startswith(prefix)
    state = model.state_dict()
    made.load_state_dict({name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)})
    x = torch.randn(2, 64, 32)
    own = model.tree()["encoder"]["layers"]["0"][sublayer.name]
    torch.testing.assert_close(sublayer.part.apply(own, x, grid=(8, 8)), made.eval()(x))


def test_a_compositional_attention_has_its_old_names() -> None:
    names = xFormer.from_config(xFormerConfig(KINDS["compositional"])).state_dict()
    prefix = "encoders.0.wrap_att.layer.sublayer.attention"
    assert names[f"{prefix}.score_network.2.weight"].shape == (1, 8)
    assert f"{prefix}.in_proj_container.v_proj.bias" in names


def test_names_of_particular_parts() -> None:
    names = {kind: set(xFormer.from_config(xFormerConfig(given)).state_dict()) for kind, given in KINDS.items()}
    assert "encoders.blocks.1.f.net.sublayer.in_proj_container.q_proj.weight" in names["reversible"]
    assert "encoders.blocks.0.g.net.norm.bias" in names["reversible"]
    assert "rev_enc_pose_encoding.word_embeddings.weight" in names["reversible"]
    assert {"encoders.0.pose_encoding.pos_emb", "encoders.0.pose_encoding.class_token"} <= names["learnable"]
    assert "encoders.0.wrap_att.layer.sublayer.attention.skip_connection.weight" in names["nystrom"]
    biases = {name.split(".")[-2] for name in names["no biases"] if "sublayer" in name and name.endswith("bias")}
    assert {"q_proj", "k_proj", "proj"}.isdisjoint(biases)
    assert "v_proj" in biases
    linformer = xFormer([block(multi_head_config=heads("linformer", k=7))]).state_dict()
    assert linformer["encoders.0.wrap_att.layer.sublayer.attention.E.weight"].shape == (7, 64)


def older(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the old factory wrote it: no norm behind the last of several layers, and no features of favor."""
    found = {n: t for n, t in state.items() if "wrap_ff.norm" not in n and not n.endswith("attention.features")}
    return {name.replace("wrap_ff.sublayer.layer", "wrap_ff.layer"): t for name, t in found.items()}


def test_what_an_old_checkpoint_lacks_is_put_there_and_told() -> None:
    config = xFormerConfig([block(), block("decoder")])
    model = xFormer.from_config(config)
    state = older(model.state_dict())
    again = xFormer.from_config(config)
    with pytest.warns(UserWarning, match="lacks the norm behind its last layer"):
        again.load_state_dict(state)
    with pytest.warns(UserWarning, match="lacks the norm behind its last layer"):
        params = params_from_state_dict(config, state)
    x = tokens()
    assert torch.equal(again(x, x), model(x, x))
    assert torch.equal(build(config).apply(params, x, x)[0], model(x, x))


def test_what_older_versions_call_otherwise_is_read() -> None:
    config = xFormerConfig([block(multi_head_config=heads("favor"))])
    model = xFormer.from_config(config).eval()
    state = {name.replace("mlp.3.", "mlp.2."): t for name, t in model.state_dict().items()}
    state |= {"encoders.0.mha.proj.weight": torch.ones(32, 32), "encoders.0.feedforward.mlp.0.bias": torch.ones(128)}
    again = xFormer.from_config(config).eval()
    again.load_state_dict(state)
    assert torch.equal(again(tokens_of(1)), model(tokens_of(1)))
    gone = {name: t for name, t in state.items() if "features" not in name}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.load_state_dict(gone)
    assert torch.equal(again(tokens_of(1)), model(tokens_of(1)))


def tokens_of(seed: int) -> Tensor:
    torch.manual_seed(seed)
    return tokens()


def test_parameters_that_nothing_used_are_left() -> None:
    config = xFormerConfig([block(multi_head_config=heads("pooling"))])
    state = xFormer.from_config(config).state_dict()
    dead = "encoders.0.wrap_att.layer.sublayer."
    state |= {f"{dead}proj.weight": torch.ones(32, 32), f"{dead}in_proj_container.q_proj.weight": torch.ones(32, 32)}
    xFormer.from_config(config).load_state_dict(state)
    params_from_state_dict(config, state)


def test_within_another_module_too() -> None:
    made = [torch.nn.ModuleDict({"body": xFormer([block()])}) for _ in "ab"]
    state = OrderedDict((name.replace("mlp.3.", "mlp.2."), t) for name, t in made[0].state_dict().items())
    made[1].load_state_dict(state)
    assert all(torch.equal(t, made[1].state_dict()[name]) for name, t in made[0].state_dict().items())


def test_tied_tables_are_read_once() -> None:
    config = xFormerConfig([block(), block("decoder")], tie_embedding_weights=True)
    model, x = xFormer.from_config(config), tokens()
    assert set(model.state_dict()) == expected("pre", 2)
    params = params_from_state_dict(config, model.state_dict())
    assert torch.equal(build(config).apply(params, x, x)[0], model(x, x))


def test_another_model_s_checkpoint_is_refused() -> None:
    config = xFormerConfig([block()])
    state = xFormer.from_config(config).state_dict()
    lacking = {name: t for name, t in state.items() if "q_proj" not in name}
    for wrong in (lacking, {**state, "encoders.9.wrap_att.norm.weight": torch.ones(32)}):
        with pytest.raises(KeyError, match=r"lacks .* and has .* besides"):
            params_from_state_dict(config, wrong)
        with pytest.raises(RuntimeError, match=r"(Missing|Unexpected) key"):
            xFormer.from_config(config).load_state_dict(wrong)
    name = "encoders.0.pose_encoding.word_embeddings.weight"
    with pytest.raises(ValueError, match="word_embeddings"):
        params_from_state_dict(config, {**state, name: torch.ones(3, 32)})
