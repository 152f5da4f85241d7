"""What surrounds a layer: a path around it, and a norm before or behind."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...ops.layer_norm import layer_norm
from ...ops.residual import deepnorm_coefficients
from ._choice import Choice


class ResidualNormStyle(Choice):
    """Where the norm is."""

    Pre = "pre"
    Post = "post"
    DeepNorm = "deepnorm"


class NormalizationType(Choice):
    """Which norm."""

    LayerNorm = "layernorm"
    Skip = "skip"


LayerNormStyle = ResidualNormStyle


class LayerNorm(torch.nn.LayerNorm):
    """:func:`xfn.layer_norm`, with torch's names."""

    def forward(self, x: Tensor) -> Tensor:
        """Of each row."""
        return layer_norm({"weight": self.weight, "bias": self.bias}, x, self.eps)


def get_normalization_layer(normalization_type: NormalizationType | str) -> Any:
    """The norm of that name, to be made with its width."""
    skip = NormalizationType(normalization_type) == NormalizationType.Skip
    return torch.nn.Identity if skip else LayerNorm


class RequiresWrappedInputs:
    """A mark of layers that take their inputs as a list, ``inputs``."""


def _called(layer: Any, inputs: Sequence[Tensor], kwargs: Any) -> Tensor:
    if isinstance(layer, RequiresWrappedInputs):
        return layer(inputs=inputs, **kwargs)  # type: ignore[operator,no-any-return]
    return layer(*inputs, **kwargs)  # type: ignore[no-any-return]


class Residual(torch.nn.Module, RequiresWrappedInputs):
    """scale · x + layer(x, …), x being the first of the inputs."""

    def __init__(self, layer: torch.nn.Module, scale: float | None = None) -> None:
        super().__init__()
        self.layer, self.scale = layer, scale

    def forward(self, inputs: Sequence[Tensor], **kwargs: Any) -> Tensor:
        """Of a list of inputs; all else goes to the layer."""
        x = inputs[0] if self.scale is None else inputs[0] * self.scale
        return x + _called(self.layer, inputs, kwargs)


class _Normed(torch.nn.Module, RequiresWrappedInputs):
    def __init__(
        self,
        d_norm: int,
        sublayer: torch.nn.Module,
        normalization: NormalizationType | str = NormalizationType.LayerNorm,
        use_triton: bool = True,
    ) -> None:
        super().__init__()
        self.norm, self.sublayer = get_normalization_layer(normalization)(d_norm), sublayer


class PreNorm(_Normed):
    """sublayer(norm x, …), of every input, and once of those that are the same."""

    def forward(self, inputs: Sequence[Tensor], **kwargs: Any) -> Tensor:
        """Of a list of inputs; all else goes to the sublayer."""
        assert len(inputs) > 0, "there is no input"
        known = {id(x): x for x in inputs}
        normed = {name: self.norm(x) for name, x in known.items()}
        return _called(self.sublayer, [normed[id(x)] for x in inputs], kwargs)


class PostNorm(_Normed):
    """norm(sublayer(x, …))."""

    def forward(self, inputs: Sequence[Tensor], **kwargs: Any) -> Tensor:
        """Of a list of inputs; all else goes to the sublayer."""
        return self.norm(_called(self.sublayer, inputs, kwargs))  # type: ignore[no-any-return]


class DeepNormCoefficients(NamedTuple):
    """The scale of the path around, and the gain of weights."""

    alpha: float
    beta: float


Coefficients = tuple[DeepNormCoefficients | None, DeepNormCoefficients | None]


def get_deepnorm_coefficients(encoder_layers: int, decoder_layers: int) -> Coefficients:
    """Those of an encoder, and those of a decoder, by how many layers they have."""
    made = deepnorm_coefficients(encoder_layers, decoder_layers)
    encoder, decoder = (DeepNormCoefficients(*made[n]) if n in made else None for n in ("encoder", "decoder"))
    return encoder, decoder
