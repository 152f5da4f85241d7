"""Words and where they stand, both learned."""

from typing import Any

import torch
from torch import Tensor

from ....ops.vocab import vocab
from .._registry import Strict, drawn, ignored
from . import PositionEmbedding, register_positional_embedding


@register_positional_embedding("vocab")
class VocabEmbedding(PositionEmbedding, Strict):
    """drop(word + position) of tokens ``[B, S]``.

    Args:
        dim_model: E.
        seq_len: how many tokens there are at most.
        vocab_size: how many words.
        dropout: the probability of dropping, in training.
    """

    def __init__(
        self, dim_model: int, seq_len: int, vocab_size: int, dropout: float = 0.0, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__()
        ignored("VocabEmbedding", kwargs)
        self.dim_model, self.vocab_size, self.p = dim_model, vocab_size, dropout
        self.position_embeddings = torch.nn.Embedding(seq_len, dim_model)
        self.word_embeddings = torch.nn.Embedding(vocab_size, dim_model)
        self.init_weights()

    def init_weights(self, gain: float = 1.0) -> None:
        """Normal, with deviation 0.02 · gain."""
        for table in (self.position_embeddings, self.word_embeddings):
            torch.nn.init.normal_(table.weight, std=0.02 * gain)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, E]``."""
        params: Any = {"word": self.word_embeddings.weight, "position": self.position_embeddings.weight}
        key = drawn(self, self.p, x.device)
        return vocab(params, x, 0.0 if key is None else self.p, key=key)
