"""Modules hold what functions take, and return what they return."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

import xfn
from xfn import bias, nn, random
from xfn._core import philox
from xfn._core.params import leaves, tree
from xfn.factory import Patch
from xfn.nn import Module
from xfn.parts.attention.dot_product import DotProduct
from xfn.parts.attention.linformer import Linformer
from xfn.parts.attention.pooling import Pooling
from xfn.parts.feedforward.mlp import MLP
from xfn.parts.position.rotary import Rotary
from xfn.parts.position.sine import Sine

DIMS = xfn.Dims(model=8, heads=2, length=6, vocab=11)
TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
CONFIG = xfn.Encoder(DIMS, 2, DotProduct(p=0.2), MLP(p=0.2), causal=True)


def net(seed: int = 0) -> Module:
    return Module(xfn.build(CONFIG), random.key(seed))


def x(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 5, 8))


def wrapped() -> dict[str, tuple[Callable[[], Module], Callable[[Module], Any], Callable[[Any, Tensor | None], Any]]]:
    """Each wrapper: how it is made, how it is called, and the function that it must be."""
    t, q, image = x(), x(2, 5, 2, 4), x(2, 3, 4, 6)
    mix = xfn.factory.Model(lambda key: xfn.init_mlp(key, 8), xfn.mlp)

    def p(key: Tensor | None, p: float = 0.3) -> dict[str, Any]:
        return {"p": 0.0 if key is None else p, "key": key}

    return {
        "Linear": (lambda: nn.Linear(8, 3), lambda n: n(t), lambda w, k: xfn.linear(w, t)),
        "LayerNorm": (lambda: nn.LayerNorm(8), lambda n: n(t), lambda w, k: xfn.layer_norm(w, t)),
        "RMSNorm": (lambda: nn.RMSNorm(8), lambda n: n(t), lambda w, k: xfn.rms_norm(w, t)),
        "MLP": (lambda: nn.MLP(8, 16, "relu", 0.3), lambda n: n(t), lambda w, k: xfn.mlp(w, t, "relu", **p(k))),
        "FusedMLP": (lambda: nn.FusedMLP(8, p=0.3), lambda n: n(t), lambda w, k: xfn.mlp(w, t, **p(k))),
        "SwiGLU": (lambda: nn.SwiGLU(8, p=0.3), lambda n: n(t), lambda w, k: xfn.swiglu(w, t, **p(k))),
        "ConvMLP": (lambda: nn.ConvMLP(8), lambda n: n(x0), lambda w, k: xfn.conv_mlp(w, x0)),
        "MoE": (lambda: nn.MoE(8, p=0.3), lambda n: n(t), lambda w, k: xfn.moe(w, t, **p(k))),
        "Embedding": (lambda: nn.Embedding(11, 8), lambda n: n(TOKENS), lambda w, k: xfn.embedding(w, TOKENS)),
        "Vocab": (lambda: nn.Vocab(11, 5, 8, 0.3), lambda n: n(TOKENS), lambda w, k: xfn.vocab(w, TOKENS, **p(k))),
        "Learned": (lambda: nn.Learned(5, 8, token=True), lambda n: n(t), lambda w, k: xfn.learned(w, t)),
        "Patch": (lambda: nn.Patch(3, 8, 2), lambda n: n(image), lambda w, k: xfn.patch(w, image)),
        "MultiHead": (
            lambda: nn.MultiHead(8, 2, groups=1, p=0.3, position=Rotary()),
            lambda n: n(t, bias=bias.causal()),
            lambda w, k: xfn.heads(w, t, heads=2, bias=bias.causal(), turn=xfn.rotary, **p(k)),
        ),
        "MultiHead across": (
            lambda: nn.MultiHead(8, 2, context=6), lambda n: n(t, c0), lambda w, k: xfn.heads(w, t, c0, heads=2)
        ),
        "Attention": (
            lambda: nn.Attention(0.3, 1.0), lambda n: n(q, q, q), lambda w, k: xfn.attention(q, q, q, scale=1.0, **p(k))
        ),
        "Dropout": (lambda: nn.Dropout(0.3), lambda n: n(t), lambda w, k: xfn.dropout(t, **p(k))),
        "Rotary": (lambda: nn.Rotary(), lambda n: n(q, q), lambda w, k: xfn.rotary(q, q)),
        "Sine": (lambda: nn.Sine(), lambda n: n(t), lambda w, k: xfn.sine(t)),
        "Simplicial": (lambda: nn.Simplicial(2), lambda n: n(t), lambda w, k: xfn.simplicial(t, 2)),
        "Reversible": (
            lambda: nn.Reversible(mix, nn.MLP(8), 2),
            lambda n: n(t, t),
            lambda w, k: xfn.reversible(xfn.mlp, xfn.mlp)(
                [(w[i]["f"], w[i]["g"]) for i in "01"], t, t, **({} if k is None else {"key": k})
            ),
        ),
        "Encoder": (
            lambda: nn.Encoder(CONFIG), lambda n: n(TOKENS), lambda w, k: xfn.build(CONFIG).apply(w, TOKENS, key=k)
        ),
        "Decoder": (
            lambda: nn.Decoder(xfn.Decoder(DIMS)), lambda n: n(TOKENS),
            lambda w, k: xfn.build(xfn.Decoder(DIMS)).apply(w, TOKENS, key=k),
        ),
        "Transformer": (
            lambda: nn.Transformer(xfn.Transformer(CONFIG, xfn.Decoder(DIMS))), lambda n: n(TOKENS, TOKENS),
            lambda w, k: xfn.build(xfn.Transformer(CONFIG, xfn.Decoder(DIMS))).apply(w, TOKENS, TOKENS, key=k),
        ),
    }  # fmt: skip


x0, c0 = torch.randn(2, 4, 8), torch.randn(2, 3, 6)
NAMES = list(wrapped())


def drawn(seed: int) -> Tensor:
    """The key that a module draws first after this seed."""
    torch.manual_seed(seed)
    return philox.drawn()


@pytest.mark.parametrize("name", NAMES)
def test_a_module_is_its_function(name: str) -> None:
    make, call, function = wrapped()[name]
    made = make()
    assert set(made.state_dict()) == set(leaves(made.params.tree()))
    key = drawn(3)
    torch.manual_seed(3)
    torch.testing.assert_close(call(made), function(made.params.tree(), key), rtol=0, atol=0)
    made.eval()
    torch.testing.assert_close(call(made), function(made.params.tree(), None), rtol=0, atol=0)


def test_every_public_module_is_held_against_its_function() -> None:
    public = {n for n, v in vars(nn).items() if isinstance(v, type) and issubclass(v, Module) and v is not Module}
    assert public == {name.split()[0] for name in NAMES}


def test_a_config_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"made of \(init, apply\), but got Encoder\(.*: write xfn\.build\(config\)$"):
        Module(CONFIG)
    with pytest.raises(TypeError, match=r"of pairs \(init, apply\) and modules of xfn\.nn, but got Linear\("):
        nn.Reversible(torch.nn.Linear(8, 8), nn.MLP(8))


def test_names_are_paths_of_the_tree() -> None:
    made, params = net(), xfn.build(CONFIG).init(random.key(0))
    assert list(made.state_dict()) == list(leaves(params))
    assert all(torch.equal(t, leaves(params)[name]) for name, t in made.state_dict().items())
    assert leaves(made.params.tree()).keys() == leaves(params).keys()
    grad(lambda p: made.model.apply(p, TOKENS)[0].sum())(made.params.tree())


def test_torchs_seed_governs() -> None:
    def run() -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(5)
        made = Module(xfn.build(CONFIG))
        return made(TOKENS)[0], made(TOKENS)[0], made.eval()(TOKENS)[0]

    first, again = run(), run()
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], first[1])
    made = net()
    assert torch.equal(made(TOKENS, key=random.key(1))[0], made(TOKENS, key=random.key(1))[0])


def test_it_trains_with_torchs_optimisers() -> None:
    made = net()
    optimiser = torch.optim.AdamW(made.parameters(), lr=1e-2)
    errors = []
    for _ in range(30):
        logits, aux = made(TOKENS[:, :-1])
        error = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten()) + sum(aux.values())
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(error.item())
    assert sum(errors[-5:]) / 5 < 0.7 * errors[0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "Reversible"])
def test_copies_compute_the_same_and_share_nothing(name: str, copied: Callable[[Any], Any]) -> None:
    make, call, _ = wrapped()[name]
    made = make().eval()
    other = copied(made)
    torch.testing.assert_close(call(other), call(made), rtol=0, atol=0)
    mine = {t.data_ptr() for t in made.parameters()}
    assert mine.isdisjoint(t.data_ptr() for t in other.parameters())


def test_parameters_go_through_functional_call_and_stacks() -> None:
    nets = [net(seed).eval() for seed in range(3)]
    params, buffers = stack_module_state(nets)
    base = copy.deepcopy(nets[0]).to("meta")
    votes = vmap(lambda p, b: functional_call(base, (p, b), (TOKENS,))[0])(params, buffers)
    for vote, one in zip(votes, nets, strict=True):
        torch.testing.assert_close(vote, one(TOKENS)[0])


@pytest.mark.parametrize("reversible", [False, True])
def test_it_compiles_whole(reversible: bool) -> None:
    made = Module(xfn.build(replace(CONFIG, layers=1, reversible=reversible)))
    compiled = torch.compile(made, fullgraph=True, backend="eager")
    key = random.key(3)
    logits, wanted = compiled(TOKENS, key=key)[0], made(TOKENS, key=key)[0]
    torch.testing.assert_close(logits, wanted)
    slopes = torch.autograd.grad(logits.square().sum(), list(made.parameters()))
    for slope, want in zip(slopes, torch.autograd.grad(wanted.square().sum(), list(made.parameters())), strict=True):
        torch.testing.assert_close(slope, want)
    assert not torch.equal(compiled(TOKENS)[0], compiled(TOKENS)[0])


def test_it_moves_and_casts_like_any_module() -> None:
    made = net().double().eval()
    assert {t.dtype for t in made.parameters()} == {torch.float64}
    assert made(TOKENS)[0].dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert net().eval()(TOKENS)[0].isfinite().all()


def test_checkpoints_go_through_safetensors(tmp_path: Path) -> None:
    tied = xfn.Transformer(xfn.Encoder(DIMS), xfn.Decoder(DIMS), tie_embeddings=True)
    model = xfn.build(tied)
    made = Module(model).eval()
    save_file(made.state_dict(), tmp_path / "net.safetensors")
    read = load_file(tmp_path / "net.safetensors")
    other = Module(model).eval()
    other.load_state_dict(read)
    assert torch.equal(other(TOKENS, TOKENS)[0], made(TOKENS, TOKENS)[0])
    assert torch.equal(model.apply(tree(read), TOKENS, TOKENS)[0], made(TOKENS, TOKENS)[0])


def test_what_is_no_number_is_a_buffer() -> None:
    def init(key: Tensor) -> dict[str, Any]:
        return {"scale": torch.ones(3), "order": torch.tensor([2, 0, 1])}

    made = Module((init, lambda params, x: x[..., params["order"]] * params["scale"]))
    assert [name for name, _ in made.named_buffers()] == ["order"]
    assert made(torch.arange(3.0)).tolist() == [2, 0, 1]


def test_heads_refuse_what_their_attention_cannot_do() -> None:
    for says, options in {
        "Pooling.apply takes no bias, so it cannot be causal": {"attention": Pooling(), "causal": True},
        "Linformer.apply takes no bias, so it cannot be causal": {"attention": Linformer(2), "causal": True},
        "Pooling.apply takes no q and k, so Rotary has nothing to turn": {
            "attention": Pooling(), "position": Rotary()
        },
        "Pooling.apply takes no context, so it cannot look at another sequence": {"attention": Pooling(), "context": 8},
        "Sine.apply turns no q and k, so it has no place within heads": {"position": Sine()},
    }.items():  # fmt: skip
        with pytest.raises(TypeError) as caught:
            nn.MultiHead(8, 2, length=6, **options)
        assert str(caught.value) == says
    with pytest.raises(TypeError, match=r"was made for no context: write MultiHead\(…, context=width\)"):
        nn.MultiHead(8, 2)(x(), x())
    with pytest.raises(TypeError, match=r"was made for a context: pass one"):
        nn.MultiHead(8, 2, context=8)(x())


def test_a_vision_transformer_takes_images() -> None:
    made = nn.Encoder(xfn.Encoder(xfn.Dims(8, 2), patch=Patch(2, channels=3)))
    assert made(x(2, 3, 4, 6))[0].shape == (2, 6, 8)
