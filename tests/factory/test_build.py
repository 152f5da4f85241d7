"""What a config becomes: names, keys, ties, stages, and what is refused."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

import xfn
from xfn import bias, random
from xfn._core.params import leaves
from xfn._core.pytree import mapped
from xfn.factory import Encoder, Model, Patch, Simplicial
from xfn.ops.residual import deepnorm_coefficients
from xfn.parts import catalogue, honours
from xfn.parts.attention.dot_product import DotProduct
from xfn.parts.attention.nystrom import Nystrom
from xfn.parts.feedforward.mlp import MLP
from xfn.parts.feedforward.moe import MixtureOfExperts
from xfn.parts.position.learned import Learned
from xfn.parts.position.none import None_
from xfn.parts.position.rotary import Rotary
from xfn.parts.position.sine import Sine
from xfn.parts.position.vocab import Vocab
from xfn.parts.residual.deepnorm import Deepnorm
from xfn.parts.residual.post import Post

DIMS = xfn.Dims(model=8, heads=2, length=6)
WORDS = replace(DIMS, vocab=11)
TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


@dataclass(frozen=True)
class Mean:
    """The mean over the sequence, for all alike; it can honour nothing."""

    def init(self, key: Tensor, dims: xfn.Dims) -> dict[str, Tensor]:
        return {}

    def apply(self, params: Any, x: Tensor) -> Tensor:
        return x.mean(-2, keepdim=True).expand_as(x)


@dataclass(frozen=True)
class Kept:
    """The mean over the keys that are ones."""

    def init(self, key: Tensor, dims: xfn.Dims) -> dict[str, Tensor]:
        return {}

    def apply(self, params: Any, q: Tensor, k: Tensor, v: Tensor, kept: Tensor | None = None) -> Tensor:
        weight = torch.ones(k.shape[-3]) if kept is None else kept.to(v.dtype)
        mean = torch.einsum("...n,...nhv->...hv", weight, v) / weight.sum(-1)[..., None, None]
        return mean.unsqueeze(-3).expand(*q.shape[:-1], -1)


@dataclass(frozen=True)
class Tiles:
    """A feed-forward part that says which grid it saw, and has a loss."""

    def init(self, key: Tensor, dims: xfn.Dims) -> dict[str, Any]:
        return {"scale": torch.ones(dims.model)}

    def apply(self, params: Any, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        return x * params["scale"], {"height": x.new_full(x.shape[:-2], grid[0]), "width": x.new_tensor(grid[1])}


def made(config: Any) -> tuple[Model, Any]:
    model = xfn.build(config)
    return model, model.init(random.key(0))


def test_it_makes_what_the_tour_shows() -> None:
    config = xfn.Encoder(WORDS, layers=2, attention=DotProduct(p=0.1), causal=True)
    model, params = made(config)
    logits, aux = model.apply(params, TOKENS)
    assert logits.shape == (2, 5, 11)
    assert aux == {}

    def objective(params: Any, tokens: Tensor, key: Tensor) -> Tensor:
        logits, aux = model.apply(params, tokens[:-1], key=key)
        error: Tensor = torch.nn.functional.cross_entropy(logits, tokens[1:]) + 0.01 * sum(aux.values())
        return error

    slopes = vmap(grad(objective), (None, 0, 0))(params, TOKENS, random.split(random.key(7), 2))
    one = grad(objective)(params, TOKENS[1], random.fold_in(random.key(7), 1))
    for name, slope in leaves(slopes).items():
        torch.testing.assert_close(slope[1], leaves(one)[name], rtol=1e-4, atol=1e-6)


def test_building_twice_gives_the_same_model() -> None:
    config = xfn.Encoder(WORDS, layers=2, attention=DotProduct(p=0.2), feedforward=MLP(p=0.2), p=0.2)
    before = repr(config)
    (one, first), (two, second) = made(config), made(config)
    assert repr(config) == before
    assert all(torch.equal(t, leaves(second)[name]) for name, t in leaves(first).items())
    key = random.key(1)
    assert torch.equal(one.apply(first, TOKENS, key=key)[0], two.apply(second, TOKENS, key=key)[0])


@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
def test_parameters_of_another_depth_are_refused(layers: int, reversible: bool) -> None:
    config = Encoder(WORDS, layers=2, reversible=reversible)
    other = made(replace(config, layers=layers))[1]
    with pytest.raises(ValueError, match=f"the parameters are of {layers} layers, but the config has 2"):
        xfn.build(config).apply(other, TOKENS)


@pytest.mark.parametrize("reversible", [True, False])
def test_a_batch_draws_what_its_examples_draw(reversible: bool) -> None:
    config = xfn.Encoder(
        WORDS, 2, DotProduct(p=0.3), MLP(p=0.3), Vocab(p=0.3), p=0.3, reversible=reversible, causal=True
    )
    model, params = made(config)
    key = random.key(4)
    batch = model.apply(params, TOKENS, key=key)[0]
    for b, tokens in enumerate(TOKENS):
        one = model.apply(params, tokens, key=random.fold_in(key, b))[0]
        torch.testing.assert_close(batch[b], one)
    assert not torch.allclose(batch, model.apply(params, TOKENS)[0])


def test_a_batch_of_pairs_draws_what_its_examples_draw() -> None:
    parts = {"attention": DotProduct(p=0.3), "feedforward": MLP(p=0.3), "position": Vocab(p=0.3), "p": 0.3}
    model, params = made(xfn.Transformer(Encoder(WORDS, **parts), xfn.Decoder(WORDS, cross=DotProduct(p=0.3), **parts)))
    key, shorter = random.key(4), TOKENS[:, :3]
    batch = model.apply(params, TOKENS, shorter, key=key)[0]
    each = vmap(lambda *pair: model.apply(params, *pair[:2], key=pair[2])[0])
    torch.testing.assert_close(each(TOKENS, shorter, random.split(key, 2)), batch)
    assert not torch.allclose(batch, model.apply(params, TOKENS, shorter)[0])
    assert model.apply(params, TOKENS[0], shorter, key=key)[0].shape == batch.shape


def test_parameters_of_many_models_own_their_storage() -> None:
    decoder = xfn.Decoder(WORDS, 1, residual=Post("rms_norm"), weights="timm")
    config = xfn.Transformer(xfn.Encoder(WORDS, 1, weights="vit", residual=Post()), decoder)
    init, apply = xfn.build(config)
    many = vmap(init)(random.split(random.key(0), 3))
    assert all(t.is_contiguous() for t in leaves(many).values())
    logits, _ = vmap(apply, (0, None, None))(many, TOKENS, TOKENS)
    assert logits.shape == (3, 2, 5, 11)


@pytest.mark.parametrize("reversible", [True, False])
def test_four_ways_to_differentiate_twice_agree(reversible: bool) -> None:
    model, params = made(xfn.Encoder(WORDS, 2, causal=True, reversible=reversible))
    params = mapped(lambda t: t.double(), params)
    v = mapped(lambda t: torch.sin(torch.arange(t.numel()).double()).reshape(t.shape), params)
    loss = lambda p: model.apply(p, TOKENS)[0].square().mean()
    along = lambda f: lambda p: jvp(f, (p,), (v,))[1]
    dot = lambda p: sum((a * b).sum() for a, b in zip(leaves(p).values(), leaves(v).values(), strict=True))
    first, second = along(grad(loss))(params), grad(along(loss))(params)
    third = grad(lambda p: dot(grad(loss)(p)))(params)
    for name, t in leaves(first).items():
        torch.testing.assert_close(t, leaves(second)[name])
        torch.testing.assert_close(t, leaves(third)[name])
    torch.testing.assert_close(along(along(loss))(params), dot(first))


@pytest.mark.parametrize(
    "config", [Encoder(WORDS, causal=True), xfn.Decoder(WORDS), Encoder(WORDS, position=Rotary(), causal=True)]
)
def test_the_future_does_not_change_the_past(config: Any) -> None:
    model, params = made(replace(config, layers=2))
    other = torch.cat([TOKENS[:, :3], TOKENS[:, 3:] + 1], -1)
    assert torch.equal(model.apply(params, TOKENS)[0][:, :3], model.apply(params, other)[0][:, :3])


def test_positions_add_turn_or_embed() -> None:
    paths = {
        Vocab(): {"position.word", "position.position"},
        Learned(): {"embedding.weight", "position.position"},
        Sine(): {"embedding.weight"},
        Rotary(): {"embedding.weight"},
        None_(): {"embedding.weight"},
    }
    outs = []
    for position, wanted in paths.items():
        model, params = made(xfn.Encoder(WORDS, position=position))
        assert {name for name in leaves(params) if name.startswith(("position", "embedding"))} == wanted
        outs.append(model.apply(params, TOKENS)[0])
        turned = model.apply(params, TOKENS.flip(-1))[0].flip(-1 - 1)
        assert torch.allclose(turned, outs[-1], atol=1e-6) == (position == None_())


def test_a_token_stands_before_all_others() -> None:
    model, params = made(Encoder(replace(DIMS, length=16), patch=Patch(2, channels=3), position=Learned(token=True)))
    assert model.apply(params, torch.randn(2, 3, 8, 8))[0].shape == (2, 17, 8)
    assert params["patch"]["weight"].shape == (8, 3, 2, 2)


def test_patches_come_once_a_stage_and_tell_the_grid() -> None:
    parts = {"attention": Mean(), "feedforward": Tiles()}
    stages = [
        Encoder(xfn.Dims(4), 2, **parts, patch=Patch((2, 1), channels=3)),
        Encoder(xfn.Dims(8), 3, **parts, patch=Patch(3, 2, 1)),
        Encoder(xfn.Dims(6), 1, **parts),
    ]
    model, params = made(stages)
    y, aux = model.apply(params, torch.randn(2, 3, 8, 6))
    assert y.shape == (2, 6, 6)
    assert (aux["height"], aux["width"]) == (2 * 4 + 3 * 2 + 1 * 2, 2 * 6 + 3 * 3 + 1 * 3)
    assert params["stages"]["1"]["patch"]["weight"].shape == (8, 4, 3, 3)
    assert params["stages"]["2"]["projector"]["weight"].shape == (6, 8)
    assert list(params["stages"]["1"]["layers"]) == ["0", "1", "2"]


def test_a_grid_is_square_where_there_are_no_patches() -> None:
    model, params = made(Encoder(DIMS, feedforward=Tiles()))
    assert model.apply(params, torch.randn(9, 8))[1] == {"height": 3, "width": 3}
    with pytest.raises(xfn.ShapeError, match=r"Tiles.apply sees a grid, but M=8 tokens do not lie on a square"):
        model.apply(params, torch.randn(8, 8))


def test_what_ends_a_model_comes_behind_the_last_layer() -> None:
    x = torch.randn(2, 5, 8)
    model, params = made(Encoder(DIMS, 3, simplicial=Simplicial(2, 0.5)))
    y = model.apply(params, x)[0]
    torch.testing.assert_close(y.unflatten(-1, (2, 4)).sum(-1), torch.ones(2, 5, 2))
    plain = xfn.build(Encoder(DIMS, 3)).apply(params, x)[0]
    assert torch.equal(y, xfn.simplicial(plain, 2, 0.5))
    torch.testing.assert_close(plain, xfn.layer_norm({}, plain), rtol=0, atol=1e-4)
    assert "norm" not in made(Encoder(DIMS, residual=Post()))[1]


def test_a_table_can_be_tied() -> None:
    model, params = made(Encoder(WORDS, tie_embeddings=True, position=Sine()))
    assert "logits" not in params
    free, loose = made(Encoder(WORDS, position=Sine()))
    loose = {**params, "logits": params["embedding"]}
    assert torch.equal(model.apply(params, TOKENS)[0], free.apply(loose, TOKENS)[0])
    slope = grad(lambda p: model.apply(p, TOKENS)[0].square().sum())(params)["embedding"]["weight"]
    apart = grad(lambda p: free.apply(p, TOKENS)[0].square().sum())(loose)
    torch.testing.assert_close(slope, apart["embedding"]["weight"] + apart["logits"]["weight"])


@pytest.mark.parametrize("position", [None, Sine()], ids=str)
def test_one_table_serves_source_target_and_logits(position: Any) -> None:
    encoder, decoder = xfn.Encoder(WORDS, position=position), xfn.Decoder(WORDS, position=position)
    model, params = made(xfn.Transformer(encoder, decoder, tie_embeddings=True))
    assert [t.shape for t in leaves(params).values()].count((11, 8)) == 1
    assert model.apply(params, TOKENS, TOKENS[:, :2])[0].shape == (2, 2, 11)


def test_what_hides_padding_hides_it_from_the_decoder_too() -> None:
    model, params = made(xfn.Transformer(xfn.Encoder(WORDS), xfn.Decoder(WORDS)))
    lengths = torch.tensor([3, 5])
    padded = model.apply(params, TOKENS, TOKENS, source_bias=bias.span(0, lengths[:, None]))[0]
    short = model.apply(params, TOKENS[0, :3], TOKENS[0])[0]
    torch.testing.assert_close(padded[0], short)
    mask = torch.arange(5) < lengths[:, None]
    assert torch.equal(padded, model.apply(params, TOKENS, TOKENS, source_bias=mask[:, None, None])[0])


def test_padding_reaches_a_part_that_takes_no_more() -> None:
    model, params = made(Encoder(DIMS, attention=Kept()))
    x, lengths = torch.randn(2, 5, 8), torch.tensor([3, 5])
    padded = model.apply(params, x, bias=bias.span(0, lengths[:, None]))[0]
    torch.testing.assert_close(padded[0, :3], model.apply(params, x[0, :3])[0])
    with pytest.raises(TypeError, match=r"Kept\.apply takes no bias, so it can honour key padding alone"):
        model.apply(params, x, bias=bias.causal())
    with pytest.raises(TypeError, match=r"Mean\.apply takes no bias, so it cannot honour one"):
        xfn.build(Encoder(DIMS, attention=Mean())).apply(params, x, bias=bias.causal())


def test_deepnorm_counts_layers() -> None:
    encoder, decoder = Encoder(DIMS, 4, residual=Deepnorm()), xfn.Decoder(DIMS, 2, residual=Deepnorm())
    plain = Encoder(DIMS, 4)
    kinds = [
        ([encoder], {"encoder": 4}, lambda p: p, plain),
        ([replace(encoder, layers=1), replace(encoder, layers=3)], {"encoder": 4}, lambda p: p["stages"]["1"], None),
        ([decoder], {"decoder": 2}, lambda p: p, xfn.Decoder(DIMS, 2)),
        (xfn.Transformer(encoder, decoder), {"encoder": 4, "decoder": 2}, lambda p: p["encoder"], plain),
        (xfn.Transformer(encoder, decoder), {"encoder": 4, "decoder": 2}, lambda p: p["decoder"], None),
    ]
    for config, layers, within, same in kinds:
        model, params = made(config)
        which = "decoder" if same is None and "decoder" in params else next(iter(layers))
        alpha, beta = deepnorm_coefficients(**layers)[which]
        layer = within(params)["layers"]["0"]
        for name, gain in (("q", 1), ("k", 1), ("v", beta), ("out", beta)):
            bound = gain * (6 / 16) ** 0.5 if name != "out" else gain / 8**0.5
            assert 0.7 * bound < layer["attention"][name]["weight"].abs().max() <= bound * (1 + 1e-6)
        assert layer["feedforward"]["up"]["weight"].abs().max() <= beta / 8**0.5 * (1 + 1e-6)
        stack: Any = getattr(model.apply, "__self__")  # noqa: B009
        stack = getattr(stack, which, stack)
        assert all(s.scaled == (alpha,) for stage in stack.stages for s in stage.sublayers)


REFUSED = {
    "Mean.apply takes no bias, so it cannot be causal": Encoder(DIMS, attention=Mean(), causal=True),
    "Tiles.apply sees a grid, so it cannot be causal": Encoder(DIMS, feedforward=Tiles(), causal=True),
    "DotProduct.apply takes params, q, k, v, bias, key: it is no feedforward": Encoder(DIMS, feedforward=DotProduct()),
    "DotProduct.apply takes params, q, k, v, bias, key: it is no position": Encoder(DIMS, position=DotProduct()),
    "MLP.apply takes params, x, key: it is no residual": Encoder(DIMS, residual=MLP()),
    "Rotary.apply takes params, q, k: it is no attention": Encoder(DIMS, attention=Rotary()),
    "Post.apply takes params, x, f: it is no cross": xfn.Transformer(
        Encoder(DIMS), xfn.Decoder(DIMS, cross=Post())
    ),
    "Mean.apply takes no q and k, so Rotary has nothing to turn": Encoder(DIMS, attention=Mean(), position=Rotary()),
    "Tiles.apply sees a grid, which has no place for the token of Learned": Encoder(
        DIMS, feedforward=Tiles(), position=Learned(token=True)
    ),
    "Mean.apply takes no context, so it cannot look at another sequence": xfn.Transformer(
        Encoder(DIMS), xfn.Decoder(DIMS, cross=Mean())
    ),
    "Nystrom.apply mixes its queries, so a causal decoder cannot look across by it: write causal=False":
        xfn.Transformer(Encoder(DIMS), xfn.Decoder(DIMS, cross=Nystrom(2))),
    "Vocab.apply takes tokens, which come to the first stage alone": [Encoder(WORDS), Encoder(WORDS, position=Vocab())],
    "Vocab needs Dims.length: write Dims(model=8, length=…)": Encoder(xfn.Dims(8, vocab=3)),
    "Vocab needs Dims.vocab: write Dims(model=8, vocab=…)": Encoder(DIMS, position=Vocab()),
    "Learned needs Dims.length: write Dims(model=8, length=…)": Encoder(xfn.Dims(8), position=Learned()),
    "Rotary turns an even number of features, but width=3 of a head's 3": Encoder(xfn.Dims(3), position=Rotary()),
    "tokens are no image: an encoder has Dims.vocab or a patch, not both": Encoder(WORDS, patch=Patch(2, channels=3)),
    "the first stage needs the channels of its images: write Patch(…, channels=3)": Encoder(DIMS, patch=Patch(2)),
    "Patch.channels=3, but the stage before has Dims.model=8: leave them out": [
        Encoder(DIMS), Encoder(DIMS, patch=Patch(2, channels=3))
    ],
    "the encoder of a Transformer predicts nothing: write Transformer(…, tie_embeddings=True)": xfn.Transformer(
        Encoder(WORDS, tie_embeddings=True), xfn.Decoder(WORDS)
    ),
    "simplicial features come behind the last layer, so the last stage alone can have them": [
        Encoder(DIMS, simplicial=Simplicial(2)), Encoder(DIMS)
    ],
    "Dims.model=8 does not divide into simplicial L=3": Encoder(DIMS, simplicial=Simplicial(3)),
    "Deepnorm has no branch, so its layers cannot be reversible": Encoder(DIMS, residual=Deepnorm(), reversible=True),
    "Tiles.apply returns losses, so its layers cannot be reversible": Encoder(
        DIMS, feedforward=Tiles(), reversible=True
    ),
    "Deepnorm counts the layers of a whole model, so all stages have it or none": [
        Encoder(DIMS, residual=Deepnorm()), Encoder(DIMS)
    ],
    "a stack is of encoders or of decoders alone: put both into a Transformer": [Encoder(DIMS), xfn.Decoder(DIMS)],
    "one table cannot embed vocab=None tokens in model=8 features and predict vocab=None of model=8": Encoder(
        DIMS, tie_embeddings=True
    ),
    "one table cannot embed source and target and predict: their (vocab, model) are [(None, 8), (11, 8), (11, 8)]":
        xfn.Transformer(Encoder(DIMS), xfn.Decoder(WORDS), tie_embeddings=True),
    "a model is an Encoder, a Decoder, a Transformer, or a list of stages, but got []": [],
    "a model is an Encoder, a Decoder, a Transformer, or a list of stages, but got None": None,
}  # fmt: skip


@pytest.mark.parametrize("says", REFUSED)
def test_the_impossible_is_refused_in_a_sentence(says: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        xfn.build(REFUSED[says])
    assert str(caught.value) == says


@pytest.mark.parametrize("name", [n for n, kind in catalogue("attention").items() if "grid" not in honours(kind())])
def test_sequences_may_be_empty(name: str) -> None:
    model, params = made(Encoder(WORDS, attention=catalogue("attention")[name]()))
    assert model.apply(params, TOKENS[:, :0])[0].shape == (2, 0, 11)
    assert model.apply(params, TOKENS[:0])[0].shape == (0, 5, 11)


def test_no_examples_have_no_loss() -> None:
    model, params = made(Encoder(WORDS, 2, feedforward=MixtureOfExperts(experts=2)))
    logits, aux = model.apply(params, TOKENS[:0])
    assert logits.shape == (0, 5, 11)
    assert aux == {"load_balance": 0}


def test_losses_within_a_reversible_stack_are_refused_when_they_come() -> None:
    @dataclass(frozen=True)
    class Silent(Tiles):
        def apply(self, params, x, grid=None):  # type: ignore[no-untyped-def]
            return x, {"loss": x.sum()}

    model, params = made(Encoder(DIMS, feedforward=Silent(), reversible=True))
    with pytest.raises(TypeError, match=r"Silent\.apply returns losses, so its layers cannot be reversible"):
        model.apply(params, torch.randn(4, 8))
