"""Heads that search and rules that retrieve, every head with whichever rule fits.

    R_hr = softmax(q_h k_hᵀ / √K + bias) v_r      c_h = softmax over r of score(R_hr, a_h x)      y_h = Σᵣ c_hr R_hr

    product      (a_h x)·(b R_hr) / √S         as published
    linear       w·R_hr + u·(a_h x)            of which the second term is the same for all rules, and so does nothing:
                                               no gradient reaches a
    mlp          w·relu(W R_hr + U (a_h x))

Source: Mittal et al., "Compositional attention: disentangling search and retrieval" (2021).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ... import random
from ..._core.dims import Dims
from ..._core.errors import ShapeError
from ..._core.fields import check_fields
from ..._core.kinds import check_probability, wide
from ..._core.params import taken
from ..._core.shapes import Signature
from ...bias import Bias
from ...ops._init import even, zeros
from ...ops.attention import attention
from ...ops.linear import linear
from .._fields import Drops

SCORES = {
    "product": "value_k.weight S V, value_k.bias? S",
    "linear": "score.weight 1 U, score.bias? 1",
    "mlp": "score.up.weight S U, score.up.bias? S, score.down.weight 1 S, score.down.bias? 1",
}
SIGNATURES = {
    score: Signature.parse(
        "x M E, context N E, q.weight q E, q.bias? q, k.weight? q E, k.bias? q, v.weight? v E, v.bias? v, "
        f"value_q.weight A a, value_q.bias? A, {letters}, out.weight E F, out.bias? E -> y M E"
    )
    for score, letters in SCORES.items()
}


@dataclass(frozen=True)
class Compositional(Drops):
    """Attention whose H searches and R retrievals combine as each token needs.

    Attributes:
        rules: R; by default as many as there are heads.
        selection: S, the width in which a head and a rule are compared; by default that of a head.
        score: how they are: ``"product"``, ``"linear"`` or ``"mlp"``.
        q_compose: compare a q_h / √K, what a head searches for, instead of a_h x.
        separate: project keys and values with weights of their own; by default with those of the queries.
        bias: whether the projections have biases.
        p: probability of dropping a softmax weight of the search.

    Example:
        >>> part, dims = Compositional(rules=4), Dims(model=8, heads=2)
        >>> part.apply(part.init(random.key(0), dims), torch.ones(5, 8)).shape
        torch.Size([5, 8])
    """

    rules: int | None = None
    selection: int | None = None
    score: Literal["product", "linear", "mlp"] = "product"
    q_compose: bool = False
    separate: bool = False
    bias: bool = True
    p: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_probability(self.p)
        if self.score not in SCORES:
            raise ValueError(f"score={self.score!r} is none of {', '.join(map(repr, SCORES))}")
        for name in ("rules", "selection"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")

    def init(self, key: Tensor, dims: Dims) -> dict[str, Any]:
        """Weights even in ±√(6 / (in + out)), those of a product's a and b by √½ smaller, and biases 0.

        ``q`` (and ``k`` and ``v``) are ``[E, E]``; ``value_q``, a, is ``[H S, E]`` or, of q, ``[S, K]``; ``value_k``,
        b, is ``[S, V]`` with V = E / R; ``score`` is ``[1, V + S]``, or ``up`` ``[S, V + S]`` and ``down`` ``[1, S]``;
        ``out`` is ``[E, H V]``.
        """
        E, H, R, S = dims.model, dims.heads, self.rules or dims.heads, self.selection or dims.head
        if E % R:
            raise ValueError(f"Dims.model={E} does not divide into rules={R}")
        V = E // R
        sizes = dict.fromkeys("qkv" if self.separate else "q", (E, E))
        sizes |= {"value_q": (dims.head, S) if self.q_compose else (E, H * S), "out": (H * V, E)}
        sizes |= {
            "product": {"value_k": (V, S)},
            "linear": {"score": (V + S, 1)},
            "mlp": {"score.up": (V + S, S), "score.down": (S, 1)},
        }[self.score]
        params: dict[str, Any] = {}
        for i, (name, (inputs, outputs)) in enumerate(sizes.items()):
            gain = 0.5**0.5 if self.score == "product" and name.startswith("value") else 1.0
            bound = gain * (6 / (inputs + outputs)) ** 0.5
            layer = {"weight": even(random.fold_in(key, i), outputs, inputs, bound=bound, dtype=torch.float32)}
            if self.bias:
                layer["bias"] = zeros(key, outputs, dtype=torch.float32)
            place, _, inner = name.partition(".")
            params.setdefault(place, {}).update({inner: layer} if inner else layer)
        return params

    def apply(
        self, params: dict[str, Any], x: Tensor, context: Tensor | None = None, bias: Bias | Tensor | None = None, *,
        key: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Search, retrieve, and choose.

        Args:
            params: as :meth:`init` makes them.
            x: ``[..., M, E]``.
            context: ``[..., N, E]``, what is searched; by default x.
            bias: of the search, as of :func:`xfn.attention`.
            key: what is dropped is drawn with it.

        Returns:
            ``[..., M, E]``.
        """
        data = {"x": x, "context": x if context is None else context}
        t, sizes, _ = taken("compositional", SIGNATURES[self.score], params, data)
        x, context = t["x"], t["context"]
        H, V = self._sizes(t, sizes)
        of = {name: name if f"{name}.weight" in t else "q" for name in "kv"}
        q, k = (through(t, name, y).unflatten(-1, (H, -1)) for name, y in (("q", x), (of["k"], context)))
        v = through(t, of["v"], context).unsqueeze(-2)
        p = 0.0 if key is None else self.p
        found = attention(q, k, v.expand(*v.shape[:-2], H, -1), bias, p, key=key).unflatten(-1, (-1, V))
        if self.q_compose:
            asked = through(t, "value_q", q * q.shape[-1] ** -0.5)
        else:
            asked = through(t, "value_q", x).unflatten(-1, (H, -1))
        choice = self._scores(t, found, asked).to(wide(x.dtype)).softmax(-1)
        y = torch.einsum("...r,...rv->...v", choice, found.to(choice.dtype)).to(found.dtype)
        return through(t, "out", y.flatten(-2))

    def _sizes(self, t: dict[str, Tensor], sizes: Mapping[str, int]) -> tuple[int, int]:
        """H and V, as the parameters have them."""
        F, A = sizes["F"], sizes["A"]
        if self.score == "linear":
            V = sizes["U"] - A if self.q_compose else F * sizes["U"] // (F + A)
        else:
            V = sizes["V"] if self.score == "product" else sizes["U"] - sizes["S"]
        H = F // V if V > 0 else 0
        if not H or F != H * V or sizes["q"] % H or sizes.get("v", sizes["q"]) % V:
            raise ShapeError(f"the parameters of compositional fit no number of heads: out.weight takes {F} features")
        return H, V

    def _scores(self, t: dict[str, Tensor], found: Tensor, asked: Tensor) -> Tensor:
        """How well each rule's result ``[..., H, R, V]`` fits what its head asks ``[..., H, S]``: ``[..., H, R]``."""
        if self.score == "product":
            return torch.einsum("...s,...rs->...r", asked * asked.shape[-1] ** -0.5, through(t, "value_k", found))
        V, name = found.shape[-1], "score" if self.score == "linear" else "score.up"
        weight, own = t[f"{name}.weight"], {"weight": t[f"{name}.weight"][:, V:]}
        own |= {"bias": t[f"{name}.bias"]} if f"{name}.bias" in t else {}
        both = linear({"weight": weight[:, :V]}, found) + linear(own, asked).unsqueeze(-2)  # type: ignore[arg-type]
        return (both if self.score == "linear" else through(t, "score.down", both.relu())).squeeze(-1)


def through(t: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """x through one of the linear maps."""
    layer: Any = {part: t[f"{name}.{part}"] for part in ("weight", "bias") if f"{name}.{part}" in t}
    return linear(layer, x)
