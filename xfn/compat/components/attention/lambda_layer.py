"""What is where, without a softmax of queries and keys."""

from typing import Any

import torch

from ....parts.attention.lambda_layer import LambdaLayer as _LambdaLayer
from . import register_attention
from ._folded import Part


@register_attention("lambda")
class LambdaLayer(Part):
    """Applies to every query the map of its place, as the paper has it.

    Args:
        dropout: the probability of dropping from the result, in training.
        seq_len: how many tokens there are at most.
        dim_head: the width of a head.
    """

    requires_same_k_q_dimensions = True
    supports_key_padding_mask = True

    def __init__(self, dropout: float = 0.0, seq_len: int = 0, dim_head: int = 0, *args: Any, **kwargs: Any) -> None:
        assert seq_len > 0 < dim_head, "lambda wants seq_len and dim_head"
        super().__init__(_LambdaLayer(dropout), dropout, **kwargs)
        self.seq_len = seq_len
        self.rel_pos_emb = torch.nn.Parameter(torch.randn(2 * seq_len - 1, int(dim_head)))

    def params(self) -> dict[str, Any]:
        """What is added for each distance."""
        return {"rel_pos_emb": self.rel_pos_emb}
