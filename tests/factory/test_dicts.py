"""Configs go to JSON and back, and what is unknown is an error that says what there is."""

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
from torch import Tensor

import xfn
from xfn.factory import Encoder, Level, Patch, Simplicial, hierarchical
from xfn.parts import catalogue
from xfn.parts.attention.blocksparse import Blocksparse
from xfn.parts.attention.dot_product import DotProduct
from xfn.parts.feedforward.mlp import MLP
from xfn.parts.position.learned import Learned
from xfn.parts.position.none import None_
from xfn.parts.position.rotary import Rotary
from xfn.parts.residual.deepnorm import Deepnorm
from xfn.parts.residual.post import Post

DIMS = xfn.Dims(model=8, heads=2, length=6, vocab=11, groups=1, hidden=12)
FULL = Encoder(
    xfn.Dims(8, 2), 3, DotProduct(0.1, 1.0), MLP("relu", 0.1), Learned(True), Post("rms_norm"), p=0.1,
    patch=Patch((2, 1), 3, (0, 1), 3), simplicial=Simplicial(2, 0.5), weights="timm",
)  # fmt: skip
DECODER = xfn.Decoder(DIMS, cross=DotProduct(p=0.3), residual=Deepnorm(), position=Rotary(width=2), tie_embeddings=True)
CONFIGS: list[Any] = [
    Encoder(xfn.Dims(8)),
    FULL,
    Encoder(DIMS, causal=True, reversible=True, position=None_()),
    DECODER,
    [Encoder(DIMS), Encoder(xfn.Dims(4))],
    xfn.Transformer(Encoder(DIMS), DECODER, tie_embeddings=True),
    xfn.Transformer([Encoder(DIMS), Encoder(DIMS, 2)], (DECODER, DECODER)),
    hierarchical([Level(8, DotProduct(), kernel=(3, 3)), Level(16, DotProduct(), 2)], (16, 12)),
]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_a_config_comes_back_from_json(config: Any) -> None:
    written = json.dumps(xfn.to_dict(config))
    assert xfn.from_dict(json.loads(written)) == config
    assert json.dumps(xfn.to_dict(xfn.from_dict(json.loads(written)))) == written


@pytest.mark.parametrize(
    ("folder", "name"),
    [(folder, name) for folder in ("attention", "feedforward", "position", "residual") for name in catalogue(folder)],
)
def test_every_part_comes_back_from_json(folder: str, name: str) -> None:
    config = replace(Encoder(xfn.Dims(8)), **{folder: catalogue(folder)[name]()})
    written = json.loads(json.dumps(xfn.to_dict(config)))
    assert written[folder]["name"] == name
    assert xfn.from_dict(written) == config


def test_it_reads_what_the_tour_shows() -> None:
    read = xfn.from_dict({
        "dims": {"model": 32, "heads": 4, "length": 64, "vocab": 100},
        "layers": 2, "causal": True,
        "attention": {"name": "dot_product", "p": 0.1},
        "feedforward": {"name": "mlp", "activation": "relu"},
        "position": {"name": "none"},
    })  # fmt: skip
    dims = xfn.Dims(model=32, heads=4, length=64, vocab=100)
    assert read == Encoder(dims, 2, DotProduct(p=0.1), MLP(activation="relu"), None_(), causal=True)
    assert xfn.from_dict({"encoder": {"dims": {"model": 8}}, "decoder": {"dims": {"model": 8}}}) == xfn.Transformer(
        Encoder(xfn.Dims(8)), xfn.Decoder(xfn.Dims(8))
    )


D = {"dims": {"model": 8}}
WRONG: dict[str, tuple[type[Exception], Any]] = {
    f"no part is called 'dot'; there are {sorted(catalogue('attention'))}": (
        KeyError, D | {"attention": {"name": "dot"}}
    ),
    f"no part is called 'sin'; there are {sorted(catalogue('position'))}": (
        KeyError, D | {"position": {"name": "sin"}}
    ),
    "dot_product has no ['q']; it has ['p', 'scale']": (TypeError, D | {"attention": {"name": "dot_product", "q": 1}}),
    "dims has no ['modle']; it has ['model', 'heads', 'length', 'vocab', 'groups', 'hidden']": (
        TypeError, {"dims": {"modle": 8}}
    ),
    "dims needs ['model']": (TypeError, {"dims": {"heads": 2}}),
    "encoder needs ['dims']": (TypeError, {"layers": 2}),
    "transformer needs ['decoder']": (TypeError, {"encoder": D}),
    "patch has no ['size']; it has ['kernel', 'stride', 'padding', 'channels']": (
        TypeError, D | {"patch": {"size": 2}}
    ),
    "no config is called 'gpt'; there are ['decoder', 'encoder', 'transformer']": (KeyError, D | {"name": "gpt"}),
    "no config is called 'decoder'; there are ['encoder']": (
        KeyError, {"encoder": D | {"name": "decoder"}, "decoder": D}
    ),
    "attention is 'dot_product', but must be a dict": (TypeError, D | {"attention": "dot_product"}),
    f"attention needs a name, one of {sorted(catalogue('attention'))}": (TypeError, D | {"attention": {"p": 0.1}}),
    f"no part is called ['mlp']; there are {sorted(catalogue('feedforward'))}": (
        KeyError, D | {"feedforward": {"name": ["mlp"]}}
    ),
    "MLP.bias is 'no', but must be True or False": (TypeError, D | {"feedforward": {"name": "mlp", "bias": "no"}}),
    "Favor.features is 8.5, but must be an integer or None": (
        TypeError, D | {"attention": {"name": "favor", "features": 8.5}}
    ),
    "a config is 3, but must be a dict": (TypeError, 3),
}  # fmt: skip


@pytest.mark.parametrize("says", WRONG)
def test_what_is_unknown_is_an_error(says: str) -> None:
    kind, data = WRONG[says]
    with pytest.raises(kind) as caught:
        xfn.from_dict(data)
    assert caught.value.args == (says,)
    if not isinstance(data, int):
        data = {**data, "residual": {"name": "pre"}}
        with pytest.raises((KeyError, TypeError)):
            xfn.from_dict([data])


def test_fields_that_a_config_has_not_are_listed() -> None:
    with pytest.raises(TypeError, match=r"encoder has no \['layer', 'head'\]; it has \['dims', 'layers', 'attention',"):
        xfn.from_dict(D | {"layer": 2, "head": 3})


def test_what_json_cannot_hold_is_refused() -> None:
    @dataclass(frozen=True)
    class Mine:
        def init(self, key: Tensor, dims: xfn.Dims) -> Any: ...
        def apply(self, params: Any, x: Tensor) -> Any: ...

    with pytest.raises(TypeError, match=r"Mine is not in xfn\.parts\.attention, so it has no name in JSON"):
        xfn.to_dict(Encoder(xfn.Dims(8), attention=Mine()))
    with pytest.raises(TypeError, match=r"Blocksparse\.numbers\['window'\] is 3j, which JSON cannot hold"):
        xfn.to_dict(Encoder(xfn.Dims(8), attention=Blocksparse(numbers={"window": 3j})))
    with pytest.raises(TypeError, match=r"a config is an Encoder, .*, but got None"):
        xfn.to_dict(None)


def test_a_pyramid_follows_from_its_image() -> None:
    levels = [Level(8, DotProduct(), 2, kernel=7, stride=4, padding=2), Level(16, DotProduct())]
    stages = hierarchical(levels, (32, 24), channels=1, head=4)
    assert [(s.dims, s.layers) for s in stages] == [(xfn.Dims(8, 2, 8 * 6), 2), (xfn.Dims(16, 4, 4 * 3), 1)]
    assert [s.patch and s.patch.channels for s in stages] == [1, None]
    with pytest.raises(ValueError, match=r"levels\[0\].model=8 is no multiple of head=3"):
        hierarchical(levels, (32, 24), head=3)
    with pytest.raises(ValueError, match=r"levels\[0\] leaves nothing of the image"):
        hierarchical(levels, (2, 2))
