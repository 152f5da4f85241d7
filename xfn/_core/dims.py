"""The sizes that all parts of a model share, so that each is written once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dims:
    """Sizes of a model.

    Attributes:
        model: E, the width between layers.
        heads: H, query heads.
        length: the longest sequence; what has a parameter for each position needs it.
        vocab: how many tokens there are; what reads or predicts tokens needs it.
        groups: G, key heads; by default as many as there are heads.
        hidden: F, the width inside a feed-forward; by default 4 E.

    Example:
        >>> Dims(model=32, heads=4).head
        8
    """

    model: int
    heads: int = 1
    length: int | None = None
    vocab: int | None = None
    groups: int | None = None
    hidden: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            absent = value is None and name != "model"
            if not absent and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"Dims.{name} is {value!r}, but must be a positive integer")
        if self.model % self.heads:
            raise ValueError(f"Dims.model={self.model} does not divide into heads={self.heads}")
        if self.groups and self.heads % self.groups:
            raise ValueError(f"Dims.heads={self.heads} cannot share groups={self.groups} key heads evenly")

    @property
    def head(self) -> int:
        """K = V, the width of one head."""
        return self.model // self.heads

    def needs(self, name: str, what: str) -> int:
        """A size that ``what`` cannot do without."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"{what} needs Dims.{name}: write Dims(model={self.model}, {name}=…)")
        return int(value)
