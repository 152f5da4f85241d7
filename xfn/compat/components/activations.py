"""Activations by name, as modules."""

from typing import Any

import torch
from torch import Tensor

from ... import activations as _activations
from ._choice import Choice


class Activation(Choice):
    """The names of activations."""

    SquaredReLU = "squared_relu"
    GeLU = "gelu"
    LeakyReLU = "leaky_relu"
    ReLU = "relu"
    SmeLU = "smelu"
    StarReLU = "star_relu"


class Activated(torch.nn.Module):
    """One of :mod:`xfn.activations` as a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Of each number."""
        return getattr(_activations, self.name)(x)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Its name."""
        return self.name


def build_activation(activation: Activation | str | None) -> torch.nn.Module:
    """The module of an activation; of None, that which does nothing.

    Example:
        >>> build_activation("squared_relu")(torch.tensor([-1.0, 3.0]))
        tensor([0., 9.])
    """
    return Activated(named(activation))


def named(activation: Any) -> str:
    """The name of an activation in :mod:`xfn.activations`."""
    return "identity" if activation is None else Activation(activation).value
