"""Activations, each with its slope: one definition, for the reference, for torch and for every kernel."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SHIFT, STRETCH, BEND, LEAK = 0.4472, 0.8944, 2.0, 0.01


def identity(x: Tensor) -> Tensor:
    """x."""
    return x


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return x.relu()


def leaky_relu(x: Tensor) -> Tensor:
    """x where x > 0, else 0.01 x (Maas, Hannun and Ng, 2013)."""
    return torch.where(x > 0, x, LEAK * x)


def gelu(x: Tensor) -> Tensor:
    """x Φ(x), with Φ the normal distribution function itself (Hendrycks and Gimpel, 2016)."""
    return torch.nn.functional.gelu(x)


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)² (So et al., "Primer", 2021)."""
    return x.relu().square()


def star_relu(x: Tensor) -> Tensor:
    """0.8944 max(x, 0)² − 0.4472, of mean 0 and variance 1 where x is normal (Yu et al., "MetaFormer", 2022)."""
    return STRETCH * x.relu().square() - SHIFT


def smelu(x: Tensor) -> Tensor:
    """0 below −2, (x + 2)² / 8 up to 2, then x (Shamir et al., "Smooth activations", 2020, with β = 2)."""
    return torch.where(x > BEND, x, (x.clamp_max(BEND) + BEND).relu().square() / (4 * BEND))


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x) (Elfwing, Uchibe and Doya, 2017)."""
    return x * x.sigmoid()


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e⁻ˣ)."""
    return x.sigmoid()


def tanh(x: Tensor) -> Tensor:
    """(eˣ − e⁻ˣ) / (eˣ + e⁻ˣ)."""
    return x.tanh()


class Activation(NamedTuple):
    """A function of numbers, and its derivative."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


def _gelu_slope(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * (-0.5 * x.square()).exp() / math.sqrt(2 * math.pi)


def _silu_slope(x: Tensor) -> Tensor:
    return x.sigmoid() * (1 + x * (1 - x.sigmoid()))


ACTIVATIONS = {
    "identity": Activation(identity, torch.ones_like),
    "relu": Activation(relu, lambda x: (x > 0).to(x.dtype)),
    "leaky_relu": Activation(leaky_relu, lambda x: torch.where(x > 0, x.new_ones(()), LEAK)),
    "gelu": Activation(gelu, _gelu_slope),
    "squared_relu": Activation(squared_relu, lambda x: 2 * x.relu()),
    "star_relu": Activation(star_relu, lambda x: 2 * STRETCH * x.relu()),
    "smelu": Activation(smelu, lambda x: torch.where(x > BEND, 1, (x + BEND).relu() / (2 * BEND))),
    "silu": Activation(silu, _silu_slope),
    "sigmoid": Activation(sigmoid, lambda x: x.sigmoid() * (1 - x.sigmoid())),
    "tanh": Activation(tanh, lambda x: 1 - x.tanh().square()),
}

ORDER = {name: i for i, name in enumerate(ACTIVATIONS)}
"""The numbers by which C++ knows them."""


def check_activation(activation: object) -> str:
    """The name of an activation."""
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"no activation is called {activation!r}; there are {', '.join(ACTIVATIONS)}, or a function")
    return activation
