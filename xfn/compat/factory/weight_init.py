"""How the weights of a model are drawn, by name."""

from ..components._choice import Choice


class xFormerWeightInit(Choice):
    """How the weights of a model are drawn."""

    Timm = "timm"
    ViT = "vit"
    Moco = "moco"
    Small = "small"
