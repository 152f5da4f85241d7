"""Architectures as values: frozen dataclasses that ``build`` reads and nothing changes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from .._core.dims import Dims
from .._core.fields import check_fields
from .._core.kinds import check_probability
from ..parts.attention.dot_product import DotProduct
from ..parts.feedforward.mlp import MLP
from ..parts.residual.pre import Pre
from .weights import check_scheme

Part = Any
"""A frozen dataclass with ``init`` and ``apply``, as :mod:`xfn.parts` has it."""
Pair = int | tuple[int, int]


@dataclass(frozen=True)
class Patch:
    """Patches of an image, or of what a stage before made of it, each mapped to a token by :func:`xfn.patch`.

    Attributes:
        kernel: their height and width.
        stride: from patch to patch; by default their own size, so that they tile.
        padding: zeros around the image.
        channels: C of the image; a later stage takes the width of the one before.
    """

    kernel: Pair
    stride: Pair | None = None
    padding: Pair = 0
    channels: int | None = None

    def __post_init__(self) -> None:
        _settle(self, "kernel", "stride", "padding")
        check_fields(self)
        for name, least in (("kernel", 1), ("stride", 1), ("padding", 0), ("channels", 1)):
            if (value := getattr(self, name)) is not None and min(_pair(value)) < least:
                raise ValueError(f"Patch.{name} is {value!r}, but must be at least {least}")

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """How many patches an image has, down and across."""
        kernel, padding = _pair(self.kernel), _pair(self.padding)
        stride = kernel if self.stride is None else _pair(self.stride)
        sizes = zip((height, width), kernel, stride, padding, strict=True)
        down, across = ((size + 2 * p - k) // s + 1 for size, k, s, p in sizes)
        return down, across


@dataclass(frozen=True)
class Simplicial:
    """Features in chunks, each a point of a simplex, by :func:`xfn.simplicial`.

    Attributes:
        L: how many chunks.
        temperature: the lower, the nearer to a corner.
    """

    L: int
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.L < 1 or self.temperature <= 0:
            raise ValueError(f"Simplicial.L={self.L} must be at least 1, temperature={self.temperature} above 0")


@dataclass(frozen=True)
class Encoder:
    """Layers that attend to their own sequence; causal, they are a language model.

    Attributes:
        dims: the sizes. With ``vocab``, tokens come in, and logits out.
        layers: how many there are.
        attention, feedforward, residual: parts of every layer.
        position: a part; by default ``Vocab()`` for tokens, and none for what has features already.
        causal: whether no query sees the future.
        reversible: whether the layers keep no activations, by :func:`xfn.reversible`.
        p: probability of dropping from what an attention adds, in training.
        patch: how an image becomes tokens.
        simplicial: what comes behind the last layer.
        tie_embeddings: whether logits are products with the table that embeds tokens.
        weights: how weights are drawn, ``"vit"``, ``"moco"``, ``"small"`` or ``"timm"``; by default as parts draw them.
    """

    dims: Dims
    layers: int = 1
    attention: Part = field(default_factory=DotProduct)
    feedforward: Part = field(default_factory=MLP)
    position: Part = None
    residual: Part = field(default_factory=Pre)
    causal: bool = False
    reversible: bool = False
    p: float = 0.0
    patch: Patch | None = None
    simplicial: Simplicial | None = None
    tie_embeddings: bool = False
    weights: str | None = None

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Decoder:
    """Layers that attend to their own sequence and, within a :class:`Transformer`, to what the encoder made.

    Attributes:
        cross: the part that attends to the encoder's result; a decoder alone has none.
        dims, layers, attention, feedforward, position, residual, causal, p, tie_embeddings, weights: as of
            :class:`Encoder`.
    """

    dims: Dims
    layers: int = 1
    attention: Part = field(default_factory=DotProduct)
    cross: Part = field(default_factory=DotProduct)
    feedforward: Part = field(default_factory=MLP)
    position: Part = None
    residual: Part = field(default_factory=Pre)
    causal: bool = True
    p: float = 0.0
    tie_embeddings: bool = False
    weights: str | None = None

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Transformer:
    """An encoder of a source, and a decoder of a target that looks at it.

    Attributes:
        encoder, decoder: one config each, or several, one behind the other.
        tie_embeddings: whether one table embeds source and target, and gives the logits.
    """

    encoder: Encoder | Sequence[Encoder]
    decoder: Decoder | Sequence[Decoder]
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        _settle(self, "encoder", "decoder")
        check_fields(self)


Stage = Encoder | Decoder
Config = Stage | Transformer | Sequence[Stage]


def _check(config: Stage) -> None:
    name = type(config).__name__
    check_fields(config)
    if config.layers < 1:
        raise ValueError(f"{name}.layers is {config.layers!r}, but must be at least 1")
    for part in ("attention", "cross", "feedforward", "position", "residual"):
        value = getattr(config, part, None)
        if value is None and part in ("cross", "position"):
            continue
        if isinstance(value, type) or not (hasattr(value, "init") and hasattr(value, "apply")):
            raise TypeError(f"{name}.{part} is {value!r}, but must be a part, with init and apply")
        if is_dataclass(value):
            check_fields(value)
    check_probability(config.p)
    check_scheme(config.weights)


def _settle(config: Any, *names: str) -> None:
    """Lists as tuples."""
    for name in names:
        if isinstance(value := getattr(config, name), list):
            object.__setattr__(config, name, tuple(value))


def _pair(value: Pair) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
