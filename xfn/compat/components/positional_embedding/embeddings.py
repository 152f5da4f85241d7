"""Positions as sines, words and their positions, and positions that are learned."""

from typing import Any

import torch
from torch import Tensor

from ....ops.learned import learned
from ....ops.sine import sine
from ....ops.vocab import vocab
from .._registry import Strict, drawn, ignored
from . import PositionEmbedding, register_positional_embedding


@register_positional_embedding("sine")
class SinePositionalEmbedding(PositionEmbedding, Strict):
    """x plus sines and cosines of where it stands; ``[B, S]`` gets features first, each as many times as there are."""

    def __init__(self, dim_model: int, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        ignored("SinePositionalEmbedding", kwargs)
        self.dim_model = dim_model

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, E]``."""
        x = x.unsqueeze(-1).expand(*x.shape, self.dim_model) if x.dim() == 2 else x
        return sine(x if x.is_floating_point() else x.float())


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


@register_positional_embedding("learnable")
class LearnablePositionalEmbedding(PositionEmbedding, Strict):
    """x plus a vector for every place.

    Args:
        seq_len: how many places.
        dim_model: E.
        add_class_token: whether one more token, which is learned, is put before all others.
    """

    def __init__(self, seq_len: int, dim_model: int, add_class_token: bool = False, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        ignored("LearnablePositionalEmbedding", kwargs)
        self.pos_emb = torch.nn.Parameter(torch.randn(1, seq_len + add_class_token, dim_model) * 0.02)
        self.class_token = torch.nn.Parameter(torch.zeros(dim_model)) if add_class_token else None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, E]``, or one more with a class token."""
        params: Any = {"position": self.pos_emb.squeeze(0)}
        if self.class_token is not None:
            params["token"] = self.class_token
        E = self.pos_emb.shape[-1]
        return learned(params, x.unsqueeze(-1).expand(*x.shape, E) if x.dim() == 2 else x)
