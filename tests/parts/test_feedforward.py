"""Feed-forward parts are their ops, as wide as they are told to be."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import xfn
from xfn import random
from xfn._core.dims import Dims
from xfn._core.params import leaves
from xfn.parts import catalogue
from xfn.parts.feedforward.conv_mlp import ConvMLP
from xfn.parts.feedforward.fused_mlp import FusedMLP
from xfn.parts.feedforward.mlp import MLP
from xfn.parts.feedforward.moe import MixtureOfExperts
from xfn.parts.feedforward.swiglu import Swiglu

from ..cases import agree

KEY = random.key(1)
X = random.normal(random.key(0), (2, 12, 6))


def width(params: Any) -> int:
    """F."""
    weight: Tensor = params.get("experts", params)["up"]["weight"]
    return weight.shape[-2]


@pytest.mark.parametrize("name", catalogue("feedforward"))
def test_they_are_as_wide_as_they_are_told(name: str) -> None:
    """By their own multiplier, else by the model, else as the op has it."""
    kind = catalogue("feedforward")[name]
    usual = {"conv_mlp": 6, "swiglu": 16}.get(name, 24)
    for part, dims, want in (
        (kind(), Dims(6), usual),
        (kind(), Dims(6, hidden=10), 10),
        (kind(multiplier=1.5), Dims(6, hidden=10), 9),
    ):
        assert width(part.init(KEY, dims)) == want


def test_fused_or_not_the_numbers_are_the_same() -> None:
    params = MLP().init(KEY, Dims(6))
    agree(FusedMLP().init(KEY, Dims(6)), params, 0.0)
    for key in (None, KEY):
        y = FusedMLP("relu", 0.3).apply(params, X, key=key)
        assert torch.equal(y, MLP("relu", 0.3).apply(params, X, key=key))
        agree(y, xfn.mlp(params, X, "relu", 0.0 if key is None else 0.3, key=key), 0.0)


@pytest.mark.parametrize("key", [None, KEY], ids=["evaluation", "training"])
def test_every_field_is_an_option_of_the_op(key: Any) -> None:
    p = 0.0 if key is None else 0.3
    rounds = partial(xfn.moe, activation="tanh", route="round_robin", room=0.7)
    experts = MixtureOfExperts(5, 3, "top", "tanh", 0.3, 0.7)
    for part, op in (
        (MLP("tanh", 0.3), lambda w: xfn.mlp(w, X, "tanh", p, key=key)),
        (Swiglu(0.3), lambda w: xfn.swiglu(w, X, p, key=key)),
        (ConvMLP("tanh", 0.3), lambda w: xfn.conv_mlp(w, X, "tanh", p, grid=(2, 6), key=key)),
        (experts, lambda w: xfn.moe(w, X, 3, "tanh", p, room=0.7, key=key)),
        (replace(experts, gate="round_robin"), lambda w: rounds(w, X, key=key, p=p)),
    ):
        params: Any = part.init(KEY, Dims(6))
        options = {"grid": (2, 6)} if isinstance(part, ConvMLP) else {}
        agree(part.apply(params, X, **options, key=key), op(params), 0.0)
        bare = leaves(replace(part, bias=False).init(KEY, Dims(6)))
        assert not any(name.endswith("bias") for name in bare)
        assert len(bare) < len(leaves(params))


def test_one_expert_is_an_mlp() -> None:
    part = MixtureOfExperts(experts=1, top=1)
    params = part.init(KEY, Dims(6))
    first = {name: {n: t[0] for n, t in layer.items()} for name, layer in params["experts"].items()}
    agree(part.apply(params, X)[0], MLP().apply(first, X), 1e-6)


def test_a_convolution_sees_the_image_that_there_is() -> None:
    part = ConvMLP()
    params = part.init(KEY, Dims(6))
    wide = part.apply(params, X, grid=(3, 4))
    agree(wide, xfn.conv_mlp(params, X, grid=(3, 4)), 0.0)
    assert not torch.equal(wide, part.apply(params, X, grid=(4, 3)))
    turned = X.unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)
    mix = {**params, "mix": {**params["mix"], "weight": params["mix"]["weight"].mT}}
    agree(part.apply(mix, turned, grid=(4, 3)).unflatten(1, (4, 3)).transpose(1, 2).flatten(1, 2), wide, 1e-5)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: MLP("gulu"), "no activation is called 'gulu'; there are identity"),
        (lambda: MLP(multiplier=0), "multiplier=0 leaves no width"),
        (lambda: MLP(p=1.5), "p=1.5 is no probability"),
        (lambda: MixtureOfExperts(experts=2, top=3), "top=3 is more than there are experts=2"),
        (lambda: MixtureOfExperts(gate="best"), "gate='best' is neither 'top' nor 'round_robin'"),
        (lambda: MixtureOfExperts(room=0), "room=0 must be positive"),
    ],
)
def test_what_is_wrong_is_said(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
