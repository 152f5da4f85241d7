"""Every scheme draws every role as its table says."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import xfn
from xfn import random
from xfn.factory import Encoder, Patch
from xfn.factory.weights import SCHEMES
from xfn.ops.residual import deepnorm_coefficients
from xfn.parts.attention.compositional import Compositional
from xfn.parts.feedforward.mlp import MLP
from xfn.parts.residual.deepnorm import Deepnorm

E, F, C, K = 96, 160, 3, 8
FANS = {"attention": (E, E), "up": (E, F), "down": (F, E), "patch": (C * K * K, E)}


def xavier(inputs: int, outputs: int) -> float:
    return math.sqrt(2 / (inputs + outputs))


def timm(inputs: int, outputs: int) -> float:
    """Of a normal of 0.02, cut at √3 of it."""
    a = math.sqrt(3)
    inside = math.erf(a / math.sqrt(2))
    return 0.02 * math.sqrt(1 - 2 * a * math.exp(-a * a / 2) / math.sqrt(2 * math.pi) / inside)


Std = Callable[[int, int], float]
ATTENTION: dict[str, Std] = {
    "vit": xavier, "moco": xavier, "timm": timm, "small": lambda i, o: math.sqrt(2 / (i + 4 * o)),
}  # fmt: skip
FEEDFORWARD: dict[str, Std] = {"vit": xavier, "moco": xavier, "small": xavier, "timm": timm}
TINY = {"vit": 1e-6, "small": 1e-6, "moco": 0.0, "timm": 0.0}


def params(weights: str | None, residual: Any = None) -> Any:
    parts = {"residual": residual} if residual else {}
    feedforward = MLP(multiplier=F / E)
    config = Encoder(xfn.Dims(E, 2), 2, feedforward=feedforward, patch=Patch(K, channels=C), weights=weights, **parts)
    return xfn.build(config).init(random.key(0))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_have_the_spread_of_their_role(scheme: str) -> None:
    made = params(scheme)
    layer = made["layers"]["1"]
    for name in ("q", "k", "v", "out"):
        assert layer["attention"][name]["weight"].std().item() == pytest.approx(ATTENTION[scheme](E, E), rel=0.05)
        assert not layer["attention"][name]["bias"].any()
    for name in ("up", "down"):
        mapped = layer["feedforward"][name]
        assert mapped["weight"].std().item() == pytest.approx(FEEDFORWARD[scheme](*FANS[name]), rel=0.05)
        assert mapped["bias"].std().item() == pytest.approx(TINY[scheme], rel=0.2)
        assert mapped["weight"].mean().abs() < 0.02 * mapped["weight"].std() + 1e-3
    if scheme in ("vit", "small"):
        assert made["patch"]["weight"].std().item() == pytest.approx(FANS["patch"][0] ** -0.5, rel=0.05)
        assert not made["patch"]["bias"].any()
    else:
        own = params(None)
        assert torch.equal(made["patch"]["weight"], own["patch"]["weight"])


@pytest.mark.parametrize("scheme", [None, *SCHEMES])
def test_deepnorm_makes_all_but_queries_and_keys_smaller(scheme: str | None) -> None:
    _, beta = deepnorm_coefficients(encoder=2)["encoder"]
    plain, deep = (params(scheme, residual)["layers"]["0"] for residual in (None, Deepnorm()))
    for name in ("q", "k", "v", "out"):
        gain = 1 if name in ("q", "k") else beta
        torch.testing.assert_close(deep["attention"][name]["weight"], gain * plain["attention"][name]["weight"])
    for name in ("up", "down"):
        torch.testing.assert_close(deep["feedforward"][name]["weight"], beta * plain["feedforward"][name]["weight"])


@pytest.mark.parametrize("scheme", [None, *SCHEMES])
def test_a_part_that_projects_for_itself_is_drawn_alike(scheme: str | None) -> None:
    _, beta = deepnorm_coefficients(encoder=1)["encoder"]
    config = Encoder(xfn.Dims(E, 2), attention=Compositional(separate=True), weights=scheme)
    plain, deep, own = (
        xfn.build(c).init(random.key(0))["layers"]["0"]["attention"]
        for c in (config, replace(config, residual=Deepnorm()), replace(config, weights=None))
    )
    for name in ("q", "k", "v", "out"):
        if scheme:
            assert plain[name]["weight"].std().item() == pytest.approx(ATTENTION[scheme](E, E), rel=0.05)
        else:
            assert torch.equal(plain[name]["weight"], own[name]["weight"])
        gain = 1 if name in ("q", "k") else beta
        torch.testing.assert_close(deep[name]["weight"], gain * plain[name]["weight"])


def test_layers_are_not_drawn_alike() -> None:
    for scheme in (None, *SCHEMES):
        drawn = [layer["attention"][name]["weight"] for layer in params(scheme)["layers"].values() for name in "qkv"]
        assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


@dataclass(frozen=True)
class Own:
    """A feed-forward part that sees a grid."""

    def init(self, key: Tensor, dims: xfn.Dims) -> dict[str, Tensor]:
        return {"weight": random.normal(key, (dims.model, dims.model))}

    def apply(self, params: Any, x: Tensor, grid: tuple[int, int]) -> Tensor:
        y: Tensor = x @ params["weight"]
        return y


def test_a_part_that_sees_a_grid_draws_for_itself() -> None:
    drawn = [xfn.build(Encoder(xfn.Dims(8), feedforward=Own(), weights=w)).init(random.key(0)) for w in (None, "vit")]
    assert torch.equal(*(params["layers"]["0"]["feedforward"]["weight"] for params in drawn))
