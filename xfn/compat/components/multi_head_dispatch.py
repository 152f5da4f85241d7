"""Heads around an attention: project, attend, project."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from ..._core.errors import ShapeError
from ...ops.rotary import rotary
from ._registry import Strict, given, ignored
from .attention import Attention
from .attention._masks import Mask
from .input_projection import InProjParams, InputProjection
from .positional_embedding.rotary import RotaryEmbedding


@dataclass
class MultiHeadDispatchConfig:
    """What :class:`MultiHeadDispatch` can be configured with."""

    dim_model: int
    num_heads: int
    attention: Any
    bias: Any = None
    residual_dropout: float | None = None
    dim_key: int | None = None
    dim_value: int | None = None
    in_proj_container: Any = None
    use_separate_proj_weight: bool | None = None
    use_rotary_embeddings: bool | None = None
    out_proj: Any = None


class MultiHeadDispatch(torch.nn.Module, Strict):
    """Projects ``[B, S, E]`` to heads, in which an attention attends, and their results back.

    Args:
        dim_model: E.
        num_heads: H, which divides E.
        attention: one of :mod:`xfn.compat.components.attention`, or one's own.
        bias: whether the projections of q, k, v and of the result have biases; one for all, or four.
        residual_dropout: the probability of dropping from the result, in training.
        use_separate_proj_weight: whether q, k and v have weights of their own.
        dim_key, dim_value: what q and k, and what v are projected to; by default E.
        in_proj_container: an ``InputProjection``, or what is called as one.
        use_rotary_embeddings: whether q and k turn with their positions.
        out_proj: the projection of the result.

    Example:
        >>> from xfn.compat.components.attention import ScaledDotProduct
        >>> heads = MultiHeadDispatch(dim_model=8, num_heads=2, attention=ScaledDotProduct())
        >>> heads(torch.ones(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        dim_model: int,
        num_heads: int,
        attention: Any,
        bias: bool | Sequence[bool] = (True, True, True, True),
        residual_dropout: float = 0.0,
        use_separate_proj_weight: bool = True,
        dim_key: int | None = None,
        dim_value: int | None = None,
        in_proj_container: Any = None,
        use_rotary_embeddings: bool | None = False,
        out_proj: torch.nn.Module | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        ignored("MultiHeadDispatch", kwargs)
        if isinstance(bias, bool):
            warnings.warn(f"bias={bias} is taken for q, k, v and the result: pass four booleans", stacklevel=2)
            bias = (bias,) * 4
        assert len(bias) == 4, f"bias is of q, k, v and the result, but has {len(bias)} items"
        assert dim_model % num_heads == 0, f"dim_model={dim_model} does not divide into num_heads={num_heads}"
        dim_key, dim_value = dim_key or dim_model, dim_value or dim_model
        self.num_heads, self.dim_model, self.dim_value = num_heads, dim_model, dim_value
        self.dim_k, self.dim_v = dim_key // num_heads, dim_value // num_heads
        self.attention = attention
        if attention.requires_input_projection:
            self.in_proj_container = in_proj_container or InputProjection(
                InProjParams(dim_model, dim_key, bias[0]),
                InProjParams(dim_model, dim_key, bias[1]),
                InProjParams(dim_model, dim_value, bias[2]),
                use_separate_proj_weight,
            )
        self.rotary_embeddings = RotaryEmbedding(self.dim_k) if use_rotary_embeddings else None
        self.resid_drop = torch.nn.Dropout(residual_dropout)
        self.proj = out_proj or torch.nn.Linear(dim_value, dim_model, bias[3])
        if isinstance(self.proj, torch.nn.Linear) and bias[3] and out_proj is None:
            torch.nn.init.zeros_(self.proj.bias)

    @classmethod
    def from_config(cls, config: Any) -> "MultiHeadDispatch":
        """That of a config, of which None is left out."""
        return cls(**given(config, cls))

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        att_mask: Mask = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend, ``[B, M, E]``.

        Args:
            query: ``[B, M, E]``.
            key, value: ``[B, N, E]``; by default the query.
            att_mask: ``[M, N]``, ``[B, M, N]``, ``[B · H, M, N]`` or ``[B, H, M, N]``, as the attention takes it.
            key_padding_mask: booleans ``[B, N]``, True where a key is one.

        Raises:
            AssertionError: what the attention does not take.
            ShapeError: not ``[B, M, E]``.
        """
        key, value = query if key is None else key, query if value is None else value
        for name, x in (("query", query), ("key", key), ("value", value)):
            if x.dim() != 3:
                raise ShapeError(f"{name} is [B, S, {self.dim_model}], but got {list(x.shape)}")
        B = max(len(query), len(key), len(value))
        one = key is value
        query, key, value = (x.expand(B, -1, -1) if len(x) != B else x for x in (query, key, value))
        value = key if one else value
        asked = self._checked(query, key, att_mask, key_padding_mask)
        attention: Any = self.attention
        if attention.requires_skip_multi_head:
            return attention(query, key, value, **asked)  # type: ignore[no-any-return]
        if attention.requires_input_projection:
            query, key, value = self.in_proj_container(query=query, key=key, value=value)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)) for x in (query, key, value))
        if self.rotary_embeddings is not None:
            q, k = rotary(q, k)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if not attention.requires_head_dimension:
            q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        y = attention(q, k, v, **asked)
        y = y if attention.requires_head_dimension else y.unflatten(0, (B, self.num_heads))
        return self.resid_drop(self.proj(y.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]

    def _checked(self, query: Tensor, key: Tensor, mask: Mask, padding: Tensor | None) -> dict[str, Any]:
        attention: Any = self.attention
        name, M, N = type(attention).__name__, query.shape[-2], key.shape[-2]
        assert mask is None or attention.supports_attention_mask, f"{name} takes no attention mask"
        assert padding is None or attention.supports_key_padding_mask, f"{name} takes no key padding"
        if M != N:
            assert not attention.requires_same_k_q_dimensions, f"{name} wants as many keys as queries, not {N} and {M}"
            assert not getattr(attention, "causal", False), (
                f"{name} is causal, which says nothing of {M} queries and {N} keys"
            )
        if attention.requires_squared_context:
            assert isqrt(M) ** 2 == M, f"{name} sees a square, but there are {M} tokens"
        return {k: v for k, v in (("att_mask", mask), ("key_padding_mask", padding)) if v is not None}


__all__ = ["Attention", "MultiHeadDispatch", "MultiHeadDispatchConfig"]
