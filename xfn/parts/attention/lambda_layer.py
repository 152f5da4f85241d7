"""Every query applies a linear map that its context makes.

    y_m = q_m (λ_c + λ_m)        λ_c = Σₙ softmaxₙ(k)ₙ ⊗ vₙ        λ_m = Σₙ E[n − m] ⊗ vₙ

The maps λ_m are never made: (q_m · E[n − m]) vₙ is summed over n, in O(M N) a head instead of O(M N K V).

Source: Bello, "LambdaNetworks: modeling long-range interactions without attention" (2021).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import random
from ..._core.dims import Dims
from ..._core.errors import ShapeError
from ..._core.fields import check_fields
from ..._core.kinds import check_probability, wide
from ..._core.params import taken
from ..._core.shapes import Signature
from ...ops.attention import attention
from ...ops.softmax import softmax
from .._fields import Drops
from ._heads import alike, checked, dropped, hiding, only

BLOCK = 256
"""Queries that are looked at together: of each block, offsets to all keys, and not to those of other blocks."""
SIGNATURE = Signature.parse("q M H K, k N G K, v N G V, rel_pos_emb R K -> y M H V")


@dataclass(frozen=True)
class LambdaLayer(Drops):
    """What is where, without a softmax of queries and keys.

    Attributes:
        p: probability of dropping from the result.

    Example:
        >>> part, q = LambdaLayer(), torch.ones(10, 2, 4)
        >>> params = part.init(random.key(0), Dims(model=8, heads=2, length=16))
        >>> part.apply(params, q, q, q).shape
        torch.Size([10, 2, 4])
    """

    p: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_probability(self.p)

    def init(self, key: Tensor, dims: Dims) -> dict[str, Any]:
        """``{"rel_pos_emb": [2 T − 1, K]}``, normal; row n − m + T − 1 is E[n − m], with T = ``dims.length``."""
        return {"rel_pos_emb": random.normal(key, (2 * dims.needs("length", "lambda_layer") - 1, dims.head))}

    def apply(
        self, params: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, kept: Tensor | None = None, *,
        key: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Apply to every query the map of its place.

        Args:
            params: as :meth:`init` makes them.
            q, k, v: ``[..., M, H, K]``, ``[..., N, G, K]`` and ``[..., N, G, V]``, with M and N at most T.
            kept: boolean ``[..., N]``, True where a key is one; the others are not seen.
            key: what is dropped is drawn with it.

        Returns:
            ``[..., M, H, V]``.

        Raises:
            ShapeError: there are more tokens than positions.
        """
        t, sizes, _ = taken("lambda_layer", SIGNATURE, params, {"q": q, "k": k, "v": v})
        M, N, H, T = (*(sizes[letter] for letter in "MNH"), (sizes["R"] + 1) // 2)
        if max(M, N) > T:
            raise ShapeError(f"lambda_layer was made for length={T}, but has M={M} queries and N={N} keys")
        kept, dtype = checked(kept, N), t["q"].dtype
        if not (M and N):  # attention to nothing: zeros
            return attention(t["q"], t["k"], t["v"])
        q, k, v = (alike(x.to(wide(dtype)), H) for x in (t["q"], t["k"], only(kept, t["v"])))
        content = torch.einsum("...hkn,...nhv->...hkv", softmax(k.movedim(-3, -1), hiding(kept)), v)
        rows = []
        for m in range(0, M, BLOCK):
            block = q[..., m : m + BLOCK, :, :]
            last = m + block.shape[-3]
            offsets = t["rel_pos_emb"].to(q.dtype)[T - last : T + N - m - 1]  # of n − m, from 1 − last to N − 1 − m
            scores = shifted(torch.einsum("...mhk,rk->...hmr", block, offsets), N)
            rows.append(torch.einsum("...hmn,...nhv->...mhv", scores, v))
        y = torch.einsum("...mhk,...hkv->...mhv", q, content) + torch.cat(rows, -3)
        return dropped(y.to(dtype), self.p, key)


def shifted(x: Tensor, N: int) -> Tensor:
    """``[..., M, M + N − 1]`` by n − m as ``[..., M, N]`` by n: row m begins M − 1 − m further right."""
    M = x.shape[-2]
    rows = torch.nn.functional.pad(x, (0, 1)).flatten(-2)[..., M - 1 : -1]
    turned: Tensor = rows.unflatten(-1, (M, M + N - 1))[..., :N]
    return turned
