"""Words and where they stand, both learned."""

from dataclasses import dataclass

from torch import Tensor

from ..._core.dims import Dims
from ..._core.fields import check_fields
from ..._core.kinds import check_probability
from ...ops import vocab as op
from .._fields import Drops


@dataclass(frozen=True)
class Vocab(Drops):
    """word[tokens] + position: a vector for every word and one for every place.

    Attributes:
        p: probability of dropping, in training.
    """

    p: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_probability(self.p)

    def init(self, key: Tensor, dims: Dims) -> op.Vocab:
        return op.init_vocab(key, dims.needs("vocab", "Vocab"), dims.needs("length", "Vocab"), dims.model)

    def apply(self, params: op.Vocab, tokens: Tensor, *, key: Tensor | None = None) -> Tensor:
        return op.vocab(params, tokens, 0.0 if key is None else self.p, key=key)
