"""An MLP under the name of those that have one pass for what follows a product, as every MLP has here."""

from dataclasses import dataclass

from .mlp import MLP


@dataclass(frozen=True)
class FusedMLP(MLP):
    """The same as :class:`MLP`, number for number."""
