"""Attention of timm's vision transformers with a mask: what ``xformers.helpers.timm_sparse_attention`` had, and
what puts it into a model."""

import sys
from typing import Any

import torch
from torch import Tensor

from ..bias import Bias
from ..ops.attention import attention
from ..ops.sparse_attention import sparse_attention
from ..sparsity import Csr
from ._drawn import dropping


class TimmSparseAttention(torch.nn.Module):
    """Attention to oneself ``[batch, length, dim]`` with projections, under a mask that is the same for all examples.

    Its modules are called as timm calls them, ``qkv`` and ``proj``, so that those of a trained model take their place;
    where ``q_norm``, ``k_norm``, ``norm`` and ``gate`` are put there, they are applied.

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
        attn_mask = _indexed(attn_mask)
        self.pattern = attn_mask if isinstance(attn_mask, Csr) else None
        self.register_buffer("attn_mask", None if self.pattern else attn_mask, persistent=False)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """What x sees of itself; ``attn_mask`` and ``is_causal`` hide and add besides the mask that is its own."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        q, k = self._if_there("q_norm", q), self._if_there("k_norm", k)
        p = self.attn_drop.p if self.training else 0.0
        key = dropping(p, x.device)
        if self.pattern is None:
            bias = Bias.of(self.attn_mask) & Bias.of(attn_mask)  # type: ignore[arg-type]
            y = attention(q, k, v, bias.causal() if is_causal else bias, p, key=key)
        elif attn_mask is not None or is_causal:
            raise ValueError("a sparse mask takes no other beside it: put both into one, or give a dense one")
        else:
            y = sparse_attention(self.pattern, q, k, v, p, key=key)
        y = self._if_there("norm", y.flatten(-2))
        if self._modules.get("gate") is not None:
            y = y * self._if_there("gate", x).sigmoid()
        found: Tensor = self.proj_drop(self.proj(y))
        return found

    def _if_there(self, name: str, x: Tensor) -> Tensor:
        """What a module makes of x, or x."""
        module = self._modules.get(name)
        return x if module is None else module(x)


def replace_attention(model: torch.nn.Module, mask: Any = None) -> torch.nn.Module:
    """Put :class:`TimmSparseAttention` in the place of every attention of a model, with that attention's own modules.

    Parameters stay what they are, under the names that they have: optimisers and checkpoints know them.

    Args:
        model: a model of timm's whose attentions are those of its vision transformers; others in it stay.
        mask: as :class:`TimmSparseAttention` takes it, over all tokens: that of a class comes first.

    Returns:
        The model, which is changed.

    Raises:
        ValueError: there is no such attention in the model.

    Example:
        >>> model = torch.nn.Sequential(TimmSparseAttention(8, 2), torch.nn.Linear(8, 4))
        >>> replace_attention(model, torch.ones(5, 5).tril())[0].attn_mask.shape
        torch.Size([5, 5])
    """
    theirs = sys.modules.get("timm.models.vision_transformer")  # where there is a model, it is there
    kinds = (TimmSparseAttention, *([] if theirs is None else [theirs.Attention]))
    found: list[tuple[torch.nn.Module, str, Any]] = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) in kinds
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no attention of timm's vision transformers")
    mask = _indexed(mask)
    for parent, name, child in found:
        with torch.random.fork_rng(devices=[]):
            made = TimmSparseAttention(child.num_heads, child.num_heads, attn_mask=mask)
        for each, module in child.named_children():
            made.add_module(each, module)
        setattr(parent, name, made.train(child.training))
    return model


def _indexed(mask: Any) -> Any:
    """A sparse tensor as the entries that it has."""
    sparse = isinstance(mask, Tensor) and mask.layout != torch.strided
    return Csr.from_mask(mask.to_dense() != 0) if sparse else mask
