"""With the same weights, stacks compute what torch's own do."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import xfn
from xfn import random
from xfn._core.params import leaves, tree
from xfn.parts.feedforward.mlp import MLP
from xfn.parts.residual.post import Post
from xfn.parts.residual.pre import Pre

E, H, F, P = 8, 2, 12, 2
DIMS = xfn.Dims(model=E, heads=H, hidden=F)
NORMS = pytest.mark.parametrize("first", [True, False], ids=["pre", "post"])
ACTIVATIONS = pytest.mark.parametrize("activation", ["relu", "gelu"])


def parts(first: bool, activation: str) -> dict[str, Any]:
    return {"layers": P, "residual": Pre() if first else Post(), "feedforward": MLP(activation)}


def moved(net: nn.Module) -> nn.Module:
    """A peer in float64 whose norms and biases are not ones and zeros."""
    net = net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net


def attention(state: Mapping[str, Tensor], path: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "out": {"weight": state[f"{path}.out_proj.weight"], "bias": state[f"{path}.out_proj.bias"]}
    }
    for part in ("weight", "bias"):
        for name, t in zip("qkv", state[f"{path}.in_proj_{part}"].chunk(3), strict=True):
            found.setdefault(name, {})[part] = t
    return found


def linear(state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    return {"weight": state[f"{path}.weight"], "bias": state[f"{path}.bias"]}


def stack(state: Mapping[str, Tensor], path: str, attentions: dict[str, str], norm: bool) -> dict[str, Any]:
    layers: dict[str, Any] = {}
    for i in range(P):
        at = f"{path}layers.{i}"
        layer: dict[str, Any] = {
            "feedforward": {"up": linear(state, f"{at}.linear1"), "down": linear(state, f"{at}.linear2")}
        }
        for j, name in enumerate([*attentions, "feedforward"]):
            layer[f"{name}_norm"] = linear(state, f"{at}.norm{j + 1}")
        layer |= {name: attention(state, f"{at}.{theirs}") for name, theirs in attentions.items()}
        layers[str(i)] = layer
    return {"layers": layers} | ({"norm": linear(state, f"{path}norm")} if norm else {})


ENCODER = {"attention": "self_attn"}
DECODER = {"attention": "self_attn", "cross": "multihead_attn"}


def close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)


def same_names(model: xfn.factory.Model, params: Any) -> bool:
    ours = {n: t.shape for n, t in leaves(model.init(random.key(0))).items()}
    return ours == {n: t.shape for n, t in leaves(params).items()}


@NORMS
@ACTIVATIONS
@pytest.mark.parametrize("causal", [True, False])
def test_an_encoder_is_torchs(first: bool, activation: str, causal: bool) -> None:
    layer = nn.TransformerEncoderLayer(E, H, F, 0.0, activation, batch_first=True, norm_first=first)
    norm = nn.LayerNorm(E) if first else None
    theirs = moved(nn.TransformerEncoder(layer, P, norm, enable_nested_tensor=False))
    params = stack(theirs.state_dict(), "", ENCODER, first)
    model = xfn.build(xfn.Encoder(DIMS, causal=causal, **parts(first, activation)))
    assert same_names(model, params)
    x = torch.randn(2, 5, E, dtype=torch.float64)
    future = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None
    assert close(model.apply(params, x)[0], theirs(x, future))
    keys = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool()
    ours = model.apply(params, x, bias=keys[:, None, None])[0]
    assert close(ours[keys], theirs(x, future, ~keys)[keys])


@NORMS
@ACTIVATIONS
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_a_transformer_is_torchs(first: bool, activation: str) -> None:
    theirs: Any = nn.Transformer(E, H, P, P, F, 0.0, activation, batch_first=True, norm_first=first)
    if not first:  # torch normalises twice at the end of a stack that is normalised already
        theirs.encoder.norm = theirs.decoder.norm = None
    theirs = moved(theirs)
    state = theirs.state_dict()
    params = {"encoder": stack(state, "encoder.", ENCODER, first), "decoder": stack(state, "decoder.", DECODER, first)}
    shared = parts(first, activation)
    model = xfn.build(xfn.Transformer(xfn.Encoder(DIMS, **shared), xfn.Decoder(DIMS, **shared)))
    assert same_names(model, params)
    source, target = torch.randn(2, 6, E, dtype=torch.float64), torch.randn(2, 5, E, dtype=torch.float64)
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    assert close(model.apply(params, source, target)[0], theirs(source, target, None, future))
    keys = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]]).bool()
    ours = model.apply(params, source, target, source_bias=keys[:, None, None])[0]
    masked = theirs(source, target, None, future, src_key_padding_mask=~keys, memory_key_padding_mask=~keys)
    assert close(ours, masked)


def test_gradients_are_torchs() -> None:
    layer = nn.TransformerDecoderLayer(E, H, F, 0.0, "gelu", batch_first=True)
    theirs = moved(nn.TransformerDecoder(layer, P))
    params = {"decoder": stack(theirs.state_dict(), "", DECODER, False)}
    encoder = xfn.Encoder(DIMS, residual=Post("skip"), layers=1)
    model = xfn.build(xfn.Transformer(encoder, xfn.Decoder(DIMS, **parts(False, "gelu"), causal=False)))
    params["encoder"] = model.init(random.key(0))["encoder"]
    params = tree({n: t.detach().double() for n, t in leaves(params).items()})
    target = torch.randn(2, 5, E, dtype=torch.float64)
    source = torch.randn(2, 6, E, dtype=torch.float64)
    memory = xfn.build(encoder).apply(params["encoder"], source)[0]
    assert close(model.apply(params, source, target)[0], theirs(target, memory))
    ours = torch.func.grad(lambda p: model.apply(p, source, target)[0].square().sum())(params)["decoder"]
    theirs(target, memory).square().sum().backward()
    slopes = {name: p.grad for name, p in theirs.named_parameters()}
    wanted = leaves(stack(slopes, "", DECODER, False))
    found = leaves(ours)
    assert found.keys() == wanted.keys()
    assert all(close(found[name], wanted[name]) for name in wanted)
