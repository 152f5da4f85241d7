"""How the weights of a model are drawn, by name."""

from enum import Enum


class xFormerWeightInit(str, Enum):  # noqa: UP042
    """How the weights of a model are drawn."""

    Timm = "timm"
    ViT = "vit"
    Moco = "moco"
    Small = "small"
