"""Heads that search and rules that retrieve."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ....parts.attention.compositional import Compositional
from .._registry import Strict, drawn, ignored
from ..input_projection import InProjParams, InputProjection
from . import Attention, register_attention
from ._masks import Mask, spread
from .attention_mask import AttentionMask
from .global_tokens import past


@register_attention("compositional")
class CompositionalAttention(Attention, Strict):
    """Attention whose H searches and R retrievals combine as each token needs.

    Args:
        dim_model: E.
        num_heads: H.
        num_rules: R; by default H.
        dim_selection: the width in which a head and a rule are compared; by default E / H.
        dropout: the probability of dropping a weight of the search, in training.
        qk_rule: compare by a product, as published; else by a map, which is ``nonlinear`` or not.
        q_compose: compare with what a head searches for.
        use_separate_proj_weight: whether keys and values have projections of their own.
        bias: whether the maps have biases.
        causal: whether a query sees no later key.
    """

    requires_skip_multi_head = True
    requires_input_projection = False

    def __init__(
        self,
        dim_model: int,
        num_heads: int,
        dim_attn: int | None = None,
        num_rules: int | None = None,
        dim_selection: int | None = None,
        dim_key: int | None = None,
        dim_value: int | None = None,
        dropout: float = 0.0,
        qk_rule: bool = False,
        nonlinear: bool = False,
        q_compose: bool = False,
        in_proj_container: Any = None,
        use_separate_proj_weight: bool | None = False,
        bias: bool = True,
        causal: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        ignored("CompositionalAttention", kwargs)
        E, H, R, S = dim_model, num_heads, num_rules or num_heads, dim_selection or dim_model // num_heads
        assert {dim_attn or E, dim_key or E, dim_value or E} == {E}, "dim_attn, dim_key and dim_value are dim_model"
        assert E % R == 0, f"dim_model={E} does not divide into num_rules={R}"
        V, own = E // R, InProjParams(E, E, bias) if use_separate_proj_weight else None
        self.in_proj_container = in_proj_container or InputProjection(InProjParams(E, E, bias), own, own)
        self.separate, self.num_heads, self.num_rules, self.dim_model = bool(own), H, R, E
        self.dropout, self.causal, self.qk_rule, self.nonlinear = dropout, causal, qk_rule, nonlinear
        self.out_proj = torch.nn.Linear(H * V, E, bias)
        self.value_q = torch.nn.Linear(E // H, S, bias) if q_compose else torch.nn.Linear(E, S * H, bias)
        if qk_rule:
            self.value_k = torch.nn.Linear(V, S, bias)
        elif nonlinear:
            hidden, last = torch.nn.Linear(S + V, S, bias), torch.nn.Linear(S, 1, bias)
            self.score_network: torch.nn.Module = torch.nn.Sequential(hidden, torch.nn.ReLU(), last)
        else:
            self.score_network = torch.nn.Linear(S + V, 1, bias)
        score: Any = "product" if qk_rule else "mlp" if nonlinear else "linear"
        self.part = Compositional(R, S, score, q_compose, bool(own), bias, dropout)
        for name, module in self.named_modules():
            if isinstance(module, torch.nn.Linear) and not name.startswith("in_proj"):
                gain = 0.5**0.5 if qk_rule and name.startswith("value") else 1.0
                torch.nn.init.xavier_uniform_(module.weight, gain)
        if bias:
            torch.nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, att_mask: Mask = None, *args: Any, mask: Mask = None, **kwargs: Any
    ) -> Tensor:
        """Search in k, retrieve from v, and choose.

        Args:
            q, k, v: ``[B, M, E]``, ``[B, N, E]`` and ``[B, N, E]``.
            att_mask, mask: booleans that keep, or what is added: ``[M, N]``, ``[B, M, N]`` or of each head.
        """
        att_mask = mask if att_mask is None else att_mask
        seen: Any = past(q, k, att_mask) if self.causal else att_mask
        if isinstance(seen, AttentionMask):
            seen = seen.values
        elif seen is not None and not isinstance(seen, Tensor):
            seen = seen.csr.to_mask().reshape(seen.csr.shape)
        if seen is not None and (seen := spread(seen, len(q) * self.num_heads)).dim() == 4:
            seen = seen.unflatten(0, (-1, self.num_heads)).squeeze(2)
        key = drawn(self, self.dropout, q.device)
        if k is not v:
            E, (params, x, context) = self.dim_model, self._apart(q, k, v)
            return self.part.apply(params, x, context, seen, key=key)[..., :E]
        return self.part.apply(self._params(), q, None if k is q else k, seen, key=key)

    def _apart(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[dict[str, Any], Tensor, Tensor]:
        """k and v side by side, and maps of which each reads its half."""
        E, params = self.dim_model, self._params()
        params |= {name: params.get(name, params["q"]) for name in ("k", "v")}
        for name in ("q", "k", "v", "value_q") if not self.part.q_compose else ("q", "k", "v"):
            sides = (E, 0) if name == "v" else (0, E)
            params[name] = {**params[name], "weight": pad(params[name]["weight"], sides)}
        params["out"] = {n: pad(t, (0, 0, 0, E) if n == "weight" else (0, E)) for n, t in params["out"].items()}
        return params, pad(q, (0, E)), torch.cat([k, v], -1)

    def _params(self) -> dict[str, Any]:
        own: Any = self.in_proj_container
        maps = {"q": own.q_proj, "out": self.out_proj, "value_q": self.value_q}
        if self.separate:
            maps |= {"k": own.k_proj, "v": own.v_proj}
        score: Any = self.value_k if self.qk_rule else self.score_network
        if self.nonlinear and not self.qk_rule:
            return {n: weights(m) for n, m in maps.items()} | {
                "score": {"up": weights(score[0]), "down": weights(score[2])}
            }
        return {n: weights(m) for n, m in (maps | {"value_k" if self.qk_rule else "score": score}).items()}


def weights(layer: torch.nn.Linear) -> dict[str, Tensor]:
    """A linear map's parameters."""
    return {name: t for name, t in (("weight", layer.weight), ("bias", layer.bias)) if t is not None}
