"""How weights are drawn: each scheme is a function of a parameter's role.

    role           parameter       vit             moco            small                       timm
    attention      weight          xavier          xavier          U(±γ √(6 / (in + 4 out)))   σ = 0.02 γ
    attention      bias            0               0               0                           0
    feedforward    weight          xavier          xavier          xavier                      σ = 0.02 γ
    feedforward    bias            σ = 10⁻⁶        0               σ = 10⁻⁶                    0
    patch          weight          lecun           as it is        lecun                       as it is
    patch          bias            0               as it is        0                           as it is

xavier is even in ±γ √(6 / (in + out)), lecun is normal of variance 1 / in, cut at two of its widths; timm's normal is
cut at √3 σ. γ is the gain: 1, or DeepNet's β of values, their output and feed-forwards. What a part draws besides
linear maps, it draws itself, and so does one that sees a grid; one that attends within heads draws all but the
projections of the heads.

Sources: Glorot and Bengio (2010); Chen, Xie and He, "MoCo v3" (2021); Nguyen and Salazar, "Transformers without tears"
(2019); Wightman, timm (2019); Wang et al., "DeepNet" (2022).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import random

Role = Literal["attention", "feedforward", "patch"]
Scheme = Callable[[Tensor, "Leaf"], Tensor]
TINY = 1e-6


class Leaf(NamedTuple):
    """A parameter as it was drawn, and what it is for.

    Attributes:
        role: of the map that it belongs to.
        name: ``"weight"`` or ``"bias"``.
        drawn: the parameter, as its own initialiser has drawn it.
        gain: γ.
    """

    role: Role
    name: str
    drawn: Tensor
    gain: float = 1.0

    @property
    def fans(self) -> tuple[int, int]:
        """in and out of the map, ``[…, out, in]``, or ``[out, in, height, width]`` of patches."""
        shape = self.drawn.shape
        return (math.prod(shape[1:]), shape[0]) if self.role == "patch" else (shape[-1], shape[-2])


def vit(key: Tensor, leaf: Leaf) -> Tensor:
    """As in the JAX implementation of vision transformers.

    Args:
        key: what is drawn with.
        leaf: the parameter.

    Returns:
        A tensor like ``leaf.drawn``.

    Example:
        >>> vit(random.key(0), Leaf("attention", "bias", torch.ones(2)))
        tensor([0., 0.])
    """
    if leaf.name == "bias":
        return _normal(key, leaf, TINY) if leaf.role == "feedforward" else _zeros(leaf)
    return _lecun(key, leaf) if leaf.role == "patch" else _xavier(key, leaf)


def moco(key: Tensor, leaf: Leaf) -> Tensor:
    """As in MoCo v3.

    Args:
        key: what is drawn with.
        leaf: the parameter.

    Returns:
        A tensor like ``leaf.drawn``.

    Example:
        >>> moco(random.key(0), Leaf("feedforward", "bias", torch.ones(2)))
        tensor([0., 0.])
    """
    if leaf.role == "patch":
        return leaf.drawn
    return _zeros(leaf) if leaf.name == "bias" else _xavier(key, leaf)


def small(key: Tensor, leaf: Leaf) -> Tensor:
    """As :func:`vit`, with smaller weights of attention.

    Args:
        key: what is drawn with.
        leaf: the parameter.

    Returns:
        A tensor like ``leaf.drawn``.

    Example:
        >>> small(random.key(0), Leaf("attention", "weight", torch.ones(2, 22))).abs().max() < 0.45
        tensor(True)
    """
    if (leaf.role, leaf.name) != ("attention", "weight"):
        return vit(key, leaf)
    inputs, outputs = leaf.fans
    return _even(key, leaf, leaf.gain * math.sqrt(6 / (inputs + 4 * outputs)))


def timm(key: Tensor, leaf: Leaf) -> Tensor:
    """As in timm.

    Args:
        key: what is drawn with.
        leaf: the parameter.

    Returns:
        A tensor like ``leaf.drawn``.

    Example:
        >>> timm(random.key(0), Leaf("attention", "weight", torch.ones(2, 3))).abs().max() < 0.035
        tensor(True)
    """
    if leaf.role == "patch":
        return leaf.drawn
    return _zeros(leaf) if leaf.name == "bias" else _cut(key, leaf, 0.02 * leaf.gain, math.sqrt(3))


def own(key: Tensor, leaf: Leaf) -> Tensor:
    """As the parts draw them: weights times the gain.

    Args:
        key: nothing is drawn with it.
        leaf: the parameter.

    Returns:
        A tensor like ``leaf.drawn``.

    Example:
        >>> own(random.key(0), Leaf("attention", "weight", torch.ones(1, 2), gain=0.5))
        tensor([[0.5000, 0.5000]])
    """
    return leaf.drawn * leaf.gain if leaf.name == "weight" and leaf.gain != 1 else leaf.drawn


SCHEMES: dict[str, Scheme] = {f.__name__: f for f in (vit, moco, small, timm)}


def check_scheme(name: str | None) -> None:
    """A scheme that there is, or none."""
    if name is not None and name not in SCHEMES:
        raise ValueError(f"no scheme of weights is called {name!r}; there are {sorted(SCHEMES)}")


def drawn(scheme: str | None, key: Tensor, params: Mapping[str, Any], role: Role, gain: float = 1.0) -> dict[str, Any]:
    """A tree of parameters with its linear maps drawn anew: all that has a weight of two dims or more."""
    check_scheme(scheme)
    draw = SCHEMES[scheme] if scheme else own
    found: dict[str, Any] = {}
    for i, (name, value) in enumerate(params.items()):
        if isinstance(value, Mapping):
            found[name] = drawn(scheme, random.fold_in(key, i), value, role, gain)
        elif name in ("weight", "bias") and isinstance(params.get("weight"), Tensor) and params["weight"].dim() > 1:
            found[name] = draw(random.fold_in(key, i), Leaf(role, name, value, gain))
        else:
            found[name] = value
    return found


def _zeros(leaf: Leaf) -> Tensor:
    return torch.zeros_like(leaf.drawn)


def _even(key: Tensor, leaf: Leaf, bound: float) -> Tensor:
    return random.uniform(key, tuple(leaf.drawn.shape), -bound, bound, dtype=leaf.drawn.dtype)


def _xavier(key: Tensor, leaf: Leaf) -> Tensor:
    return _even(key, leaf, leaf.gain * math.sqrt(6 / sum(leaf.fans)))


def _normal(key: Tensor, leaf: Leaf, std: float) -> Tensor:
    return random.normal(key, tuple(leaf.drawn.shape), dtype=leaf.drawn.dtype) * std


def _lecun(key: Tensor, leaf: Leaf) -> Tensor:
    """Of variance 1 / in, as a normal one of width σ, cut at 2 σ, has 0.8796² σ²."""
    return _cut(key, leaf, math.sqrt(1 / leaf.fans[0]) / 0.87962566103423978, 2.0)


def _cut(key: Tensor, leaf: Leaf, std: float, at: float) -> Tensor:
    """Normal of width ``std``, cut at ``at`` widths: the quantiles of even numbers."""
    edge = math.erf(at / math.sqrt(2))
    even = random.uniform(key, tuple(leaf.drawn.shape), -edge, edge, dtype=torch.float64)
    return (torch.erfinv(even) * (std * math.sqrt(2))).to(leaf.drawn.dtype)
