"""Each place of an image looks at a large neighbourhood, feature by feature."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import random
from ..._core.dims import Dims
from ...ops._grid import each
from ...ops.linear import linear

SHAPES = {"up": (), "near": (5, 5), "far": (7, 7), "mix": (), "down": ()}
FAR = 3


@dataclass(frozen=True)
class Visual:
    """x + down(u ∘ mix(far(near(u)))) with u = gelu(up x), over an image: large-kernel attention.

    near is each feature's own 5 × 5 convolution and far its own 7 × 7 of every third place, zeros around the image;
    up, mix and down are linear maps of the features at a place.

    Source: Guo, Lu, Liu, Cheng and Hu, "Visual attention network" (2022).
    """

    def init(self, key: Tensor, dims: Dims) -> dict[str, Any]:
        """Weights normal with variance 2 / fan out, biases 0, as the paper's program draws them."""
        E, params = dims.model, {}
        for i, (name, size) in enumerate(SHAPES.items()):
            shape, fan = ((E, *size), math.prod(size)) if size else ((E, E), E)
            weight = random.normal(random.fold_in(key, i), shape, dtype=torch.float32) * math.sqrt(2 / fan)
            params[name] = {"weight": weight, "bias": key.new_zeros(E, dtype=torch.float32)}
        return params

    def apply(self, params: dict[str, Any], x: Tensor, *, grid: tuple[int, int] | None = None) -> Tensor:
        near, far = params["near"], params["far"]
        u = linear(params["up"], x, "gelu")
        seen = each(each(u, near["weight"], near["bias"], grid), far["weight"], far["bias"], grid, FAR)
        return x + linear(params["down"], u * linear(params["mix"], seen))
