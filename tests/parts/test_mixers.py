"""Parts that mix tokens without queries: a transform, a mean, a large convolution."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu

from xfn import random
from xfn._core.dims import Dims
from xfn.parts.attention.fourier_mix import FourierMix
from xfn.parts.attention.pooling import Pooling
from xfn.parts.attention.visual import Visual

from ..cases import agree


def drawn(*shape: int) -> Tensor:
    return random.normal(random.key(0), shape, dtype=torch.float64)


def waves(n: int) -> Tensor:
    """The matrix of the discrete Fourier transform."""
    m = torch.arange(n, dtype=torch.float64)
    return torch.exp(-2j * torch.pi * m[:, None] * m / n)


def test_fourier_mix_is_two_matrices() -> None:
    x = drawn(2, 7, 6)
    agree(FourierMix().apply({}, x), (waves(7) @ x.to(torch.complex128) @ waves(6)).real)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_pooling_is_the_mean_of_the_neighbours_that_there_are(size: int) -> None:
    x, r = drawn(2, 3, 4, 5), size // 2
    want = torch.stack([
        x[:, max(0, i - r) : i + r + 1, max(0, j - r) : j + r + 1].mean((1, 2)) - x[:, i, j]
        for i in range(3)
        for j in range(4)
    ], 1)  # fmt: skip
    agree(Pooling(size).apply({}, x.flatten(1, 2), grid=(3, 4)), want)


def test_visual_is_its_convolutions() -> None:
    part, E = Visual(), 4
    params: Any = part.init(random.key(1), Dims(model=E))
    shapes = {name: list(layer["weight"].shape) for name, layer in params.items()}
    assert shapes == {"up": [E, E], "near": [E, 5, 5], "far": [E, 7, 7], "mix": [E, E], "down": [E, E]}
    params = {n: {"weight": p["weight"].double(), "bias": drawn(E)} for n, p in params.items()}
    x = drawn(2, 5, 6, E)

    def layer(name: str, x: Tensor, **options: Any) -> Tensor:
        weight = params[name]["weight"]
        square = weight[:, :, None, None] if weight.dim() == 2 else weight[:, None]
        return conv2d(x, square, params[name]["bias"], groups=1 if weight.dim() == 2 else E, **options)

    u = gelu(layer("up", x.movedim(-1, 1)))
    kernel = layer("mix", layer("far", layer("near", u, padding=2), padding=9, dilation=3))
    want = x + layer("down", u * kernel).movedim(1, -1)
    agree(part.apply(params, x.flatten(1, 2), grid=(5, 6)), want.flatten(1, 2))


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match="size=4 has no middle"):
        Pooling(4)
    with pytest.raises(ValueError, match=r"M=6 tokens do not lie on a grid of 2 x 2: write grid=\(rows, columns\)"):
        Pooling().apply({}, drawn(6, 2))
    with pytest.raises(ValueError, match="M=6 tokens do not lie on a grid of 2 x 4: it has 8 places"):
        Pooling().apply({}, drawn(6, 2), grid=(2, 4))
