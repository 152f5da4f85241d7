"""Pyramids: stages that see an image through ever coarser and wider patches.

Source: Yu et al., "MetaFormer is actually what you need for vision" (2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .._core.dims import Dims
from ..parts.feedforward.mlp import MLP
from ..parts.position.learned import Learned
from ..parts.residual.pre import Pre
from .config import Encoder, Pair, Part, Patch


@dataclass(frozen=True)
class Level:
    """One stage of a pyramid.

    Attributes:
        model: E, its width.
        attention: a part; what sees a grid, or anything else.
        layers: how many.
        kernel, stride, padding: of the patches through which it sees the level before, as of :class:`Patch`.
        feedforward: a part.
    """

    model: int
    attention: Part
    layers: int = 1
    kernel: Pair = 3
    stride: Pair | None = 2
    padding: Pair = 1
    feedforward: Part = field(default_factory=MLP)


def hierarchical(
    levels: Sequence[Level], image: tuple[int, int], channels: int = 3, head: int | None = None,
    position: Any = None, residual: Any = None,
) -> list[Encoder]:  # fmt: skip
    """The stages of a pyramid over images.

    Args:
        levels: from the finest to the coarsest.
        image: height and width.
        channels: of the image.
        head: the width of a head; by default each level has one.
        position: a part of every level; by default ``Learned()``.
        residual: a part of every layer; by default ``Pre()``.

    Returns:
        Configs for :func:`xfn.build`, with lengths that follow from the image and the patches.

    Raises:
        ValueError: a width is no multiple of ``head``, or an image is smaller than a patch.

    Example:
        >>> from xfn.parts.attention.dot_product import DotProduct
        >>> pyramid = hierarchical([Level(16, DotProduct(), 2), Level(32, DotProduct())], image=(16, 16))
        >>> [(stage.dims.model, stage.dims.length) for stage in pyramid]
        [(16, 64), (32, 16)]
    """
    stages: list[Encoder] = []
    for i, level in enumerate(levels):
        patch = Patch(level.kernel, level.stride, level.padding, channels if i == 0 else None)
        image = patch.grid(*image)
        if min(image) < 1:
            raise ValueError(f"levels[{i}] leaves nothing of the image: its patches are larger than what they see")
        if head and level.model % head:
            raise ValueError(f"levels[{i}].model={level.model} is no multiple of head={head}")
        dims = Dims(level.model, level.model // head if head else 1, image[0] * image[1])
        parts: dict[str, Any] = {"position": position or Learned(), "residual": residual or Pre()}
        stages.append(Encoder(dims, level.layers, level.attention, level.feedforward, patch=patch, **parts))
    return stages
