"""Attention of timm's vision transformers with a mask: what ``xformers.helpers.timm_sparse_attention`` had."""

from typing import Any

import torch
from torch import Tensor

from ..ops.attention import attention
from ..ops.sparse_attention import sparse_attention
from ..sparsity import Csr


class TimmSparseAttention(torch.nn.Module):
    """Attention to oneself ``[batch, length, dim]`` with projections, under a mask that is the same for all examples.

    Its modules are called as timm calls them, ``qkv`` and ``proj``, so that those of a trained model take their place;
    where ``q_norm``, ``k_norm`` and ``norm`` are put there, they are applied.

    Args:
        dim: the width.
        num_heads: how many heads there are.
        qkv_bias: whether queries, keys and values have biases.
        attn_drop: probability of dropping a weight in training.
        proj_drop: probability of dropping from the result in training.
        attn_mask: ``[length, length]`` or ``[num_heads, length, length]``: boolean, True where a query sees a key, or
            what is added to logits, or a sparse tensor of what is seen, or a :class:`xfn.Csr`.

    Example:
        >>> attend = TimmSparseAttention(8, 2, attn_mask=torch.ones(5, 5).tril().bool())
        >>> attend(torch.ones(3, 5, 8)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self, dim: int, num_heads: int = 8, qkv_bias: bool = False, attn_drop: float = 0.0, proj_drop: float = 0.0,
        attn_mask: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_heads = num_heads
        self.qkv = torch.nn.Linear(dim, 3 * dim, qkv_bias)
        self.attn_drop = torch.nn.Dropout(attn_drop)
        self.proj = torch.nn.Linear(dim, dim)
        self.proj_drop = torch.nn.Dropout(proj_drop)
        if isinstance(attn_mask, Tensor) and attn_mask.layout != torch.strided:
            attn_mask = Csr.from_mask(attn_mask.to_dense() != 0)
        self.pattern = attn_mask if isinstance(attn_mask, Csr) else None
        self.register_buffer("attn_mask", None if self.pattern else attn_mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """What x sees of itself."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        q, k = self._if_there("q_norm", q), self._if_there("k_norm", k)
        p = self.attn_drop.p if self.training else 0.0
        key = torch.randint(2**32, (2,)).to(x.device) if p else None
        if self.pattern is None:
            y = attention(q, k, v, self.attn_mask, p, key=key)  # type: ignore[arg-type]
        else:
            y = sparse_attention(self.pattern, q, k, v, p, key=key)
        y = self._if_there("norm", y.flatten(-2))
        found: Tensor = self.proj_drop(self.proj(y))
        return found

    def _if_there(self, name: str, x: Tensor) -> Tensor:
        """What a module makes of x, or x."""
        module = self._modules.get(name)
        return x if module is None else module(x)
