"""Attention to projections of the keys along their length.

    y = softmax(q (E k)ᵀ / √K) (F v)        E, F: N → L

Source: Wang et al., "Linformer: self-attention with linear complexity" (2020).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._core.dims import Dims
from ..._core.errors import ShapeError
from ..._core.fields import check_fields
from ..._core.kinds import check_probability
from ..._core.params import taken
from ..._core.shapes import Signature
from ...ops.attention import attention
from ...ops.linear import init_linear
from ...random import fold_in
from .._fields import Drops
from ._heads import checked, only

SIGNATURE = Signature.parse("q M H K, k N G K, v N G V, k.weight L T, v.weight L T -> y M H V")


@dataclass(frozen=True)
class Linformer(Drops):
    """Every query sees L mixtures of the keys instead of the keys.

    Attributes:
        rank: L; by default a quarter of ``Dims.length``.
        p: probability of dropping a softmax weight.

    Example:
        >>> part, dims = Linformer(rank=4), Dims(model=8, heads=2, length=16)
        >>> q = torch.ones(10, 2, 4)
        >>> part.apply(part.init(torch.tensor([0, 0]), dims), q, q, q).shape
        torch.Size([10, 2, 4])
    """

    rank: int | None = None
    p: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_probability(self.p)
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank={self.rank} leaves no keys to attend to: it must be at least 1")

    def init(self, key: Tensor, dims: Dims) -> dict[str, Any]:
        """``{"k": {"weight": [L, T]}, "v": {"weight": [L, T]}}`` for sequences of up to T = ``dims.length`` keys."""
        length = dims.needs("length", "linformer")
        rank = self.rank or max(1, length // 4)
        return {name: dict(init_linear(fold_in(key, i), length, rank, False)) for i, name in enumerate("kv")}

    def apply(
        self, params: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, kept: Tensor | None = None, *,
        key: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Attend to the projected keys.

        Args:
            params: as :meth:`init` makes them.
            q: ``[..., M, H, K]``.
            k: ``[..., N, G, K]`` with N ≤ T. Where there are fewer than T keys, zeros stand for the others.
            v: ``[..., N, G, V]``.
            kept: boolean ``[..., N]``: where it is False, zeros stand for the key too.
            key: what is dropped is drawn with it.

        Returns:
            ``[..., M, H, V]``.

        Raises:
            ShapeError: there are more keys than the projections take.
        """
        t, sizes, _ = taken("linformer", SIGNATURE, params, {"q": q, "k": k, "v": v})
        N, T = sizes["N"], sizes["T"]
        if N > T:
            raise ShapeError(f"k has N={N}, but linformer was made for length={T}: write Dims(length={N})")
        kept = checked(kept, N)
        k, v = (
            torch.einsum("ln,...ngk->...lgk", t[f"{name}.weight"][:, :N], only(kept, t[name])) for name in "kv"
        )  # fmt: skip
        return attention(t["q"], k, v, p=0.0 if key is None else self.p, key=key)
