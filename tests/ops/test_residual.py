"""Residual layers are their formulas, of any functions; DeepNet's coefficients are the paper's."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import xfn
from xfn import random, residual

from ..cases import agree

X = torch.randn(2, 5, 8, dtype=torch.float64)
PARAMS = {
    "f": xfn.init_mlp(random.key(0), 8, dtype=torch.float64),
    "norm": {"weight": torch.randn(8, dtype=torch.float64)},
}


def norm(x: Tensor) -> Tensor:
    return xfn.layer_norm(PARAMS["norm"], x)


def test_options_reach_the_function() -> None:
    options = {"p": 0.3, "key": random.key(1)}
    f = lambda x: xfn.mlp(PARAMS["f"], x, "relu", **options)
    agree(residual.skip(xfn.mlp)(PARAMS["f"], X, "relu", **options), X + f(X))
    agree(residual.pre(xfn.mlp)(PARAMS, X, "relu", **options), X + f(norm(X)))
    agree(residual.post(xfn.mlp)(PARAMS, X, "relu", **options), norm(X + f(X)))
    agree(residual.deepnorm(xfn.mlp, 2.5)(PARAMS, X, "relu", **options), norm(2.5 * X + f(X)))


def test_another_norm() -> None:
    y = residual.pre(xfn.mlp, xfn.rms_norm)(PARAMS, X)
    agree(y, X + xfn.mlp(PARAMS["f"], xfn.rms_norm(PARAMS["norm"], X)))


def test_they_nest_in_other_functions_of_functions() -> None:
    """What is frugal with memory takes them, for their parameters are arguments."""
    layer = residual.pre(xfn.mlp)
    slope = lambda f: torch.func.grad(lambda p, x: f(p, x).sin().sum())(PARAMS, X)
    agree(slope(xfn.recompute(layer)), slope(layer))
    y = xfn.reversible(layer, layer)([(PARAMS, PARAMS)], X, X)
    y1 = X + layer(PARAMS, X)
    agree(y, (y1, X + layer(PARAMS, y1)))


@pytest.mark.parametrize(
    ("encoder", "decoder", "want"),
    [
        (18, 0, {"encoder": (36**0.25, 144**-0.25)}),
        (0, 18, {"decoder": (36**0.25, 144**-0.25)}),
        (100, 100, {"encoder": (0.81 * 10**0.625, 0.87 / 10**0.625), "decoder": (300**0.25, 1200**-0.25)}),
        (16, 1, {"encoder": (1.62, 0.435), "decoder": (3**0.25, 12**-0.25)}),
    ],
)
def test_coefficients_are_the_papers(encoder: int, decoder: int, want: dict[str, tuple[float, float]]) -> None:
    got = residual.deepnorm_coefficients(encoder, decoder)
    assert set(got) == set(want)
    for stack, pair in want.items():
        assert got[stack] == pytest.approx(pair, rel=1e-12)


def test_what_all_layers_add_does_not_grow_with_depth() -> None:
    """2N sub-layers, each of β² against what goes past it, α²: what the coefficients were chosen for."""
    for N in (6, 100, 1000):
        alpha, beta = residual.deepnorm_coefficients(encoder=N)["encoder"]
        assert 2 * N * beta**2 / alpha**2 == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: residual.pre(xfn.mlp)({"f": {}}, X), "the parameters of pre are {'f': …, 'norm': …}, but these are f"),
        (
            lambda: residual.post(xfn.mlp)({}, X),
            "the parameters of post are {'f': …, 'norm': …}, but these are nothing",
        ),
        (lambda: residual.deepnorm(xfn.mlp, 2.0)([X, X], X), "but these are list"),
        (lambda: residual.deepnorm_coefficients(), "encoder=0 and decoder=0 must be numbers of layers, not both 0"),
        (lambda: residual.deepnorm_coefficients(-1), "encoder=-1 and decoder=0 must be numbers of layers"),
    ],
)
def test_errors_say_what_to_write(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        call()
