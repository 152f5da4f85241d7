"""Attention through a few of the queries.

    y = softmax(q Lᵀ / √K) softmax(L kᵀ / √K) v        L: landmarks, chosen without gradient

Source: Patrick et al., "Keeping your eye on the ball: trajectory attention in video transformers" (2021).
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, func

from ... import random
from ..._core.dims import Dims
from ..._core.fields import check_fields
from ..._core.kinds import check_probability, wide
from ..._core.params import taken
from ..._core.shapes import Signature
from ...ops.attention import attention
from ._heads import alike, dropped, each, uncast

SIGNATURE = Signature.parse("q M H K, k N G K, v N G V -> y M H V")
STEPS = 6
"""Of k-means."""
SELECTIONS = ("orthogonal", "kmeans", "kmeans_spherical", "random")


@dataclass(frozen=True)
class Ortho:
    """Attention in O(M + N), through L landmarks; exact where there are no more tokens than landmarks.

    Attributes:
        landmarks: L.
        selection: ``"orthogonal"`` takes queries, each as far from the directions of those before it as there is one;
            ``"kmeans"`` takes the centres of clusters of queries, ``"kmeans_spherical"`` of their directions, of
            length 1; ``"random"`` takes queries and keys, half and half.
        subsample: the share of queries, drawn at random, among which to choose or to cluster.
        seed: what evaluation draws with, which has no key: every example the same.
        p: probability of dropping from the result.

    Example:
        >>> part, q = Ortho(landmarks=4), random.normal(random.key(0), (10, 2, 8))
        >>> part.apply({}, q, q, q).shape
        torch.Size([10, 2, 8])
    """

    mixes = True
    landmarks: int = 32
    selection: Literal["orthogonal", "kmeans", "kmeans_spherical", "random"] = "orthogonal"
    subsample: float = 1.0
    seed: int = 0
    p: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_probability(self.p)
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection={self.selection!r} is none of {', '.join(map(repr, SELECTIONS))}")
        if self.landmarks < 1 or not 0 < self.subsample <= 1:
            raise ValueError(f"landmarks={self.landmarks} must be at least 1, subsample={self.subsample} in (0, 1]")

    def init(self, key: Tensor, dims: Dims) -> dict[str, Any]:
        """Nothing: it has no parameters."""
        return {}

    def apply(
        self, params: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, *, key: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """Attend through landmarks.

        Args:
            params: none.
            q, k, v: ``[..., M, H, K]``, ``[..., N, G, K]`` and ``[..., N, G, V]``.
            key: landmarks are drawn with it, and what is dropped.

        Returns:
            ``[..., M, H, V]``.
        """
        t, sizes, batch = taken("ortho", SIGNATURE, params, {"q": q, "k": k, "v": v})
        q, k, v = (t[name] for name in "qkv")
        drawing, dropping = (random.key(self.seed, device=q.device), None) if key is None else each(key, batch, 2)
        if self.landmarks >= min(sizes["M"], sizes["N"]) or not q.numel():
            y = attention(q, k, v)
        else:
            marks = self._chosen(drawing, q.detach(), alike(k.detach(), sizes["H"]), batch)
            y = attention(q, marks, attention(marks, k, v))
        return dropped(y, self.p, dropping)

    def _chosen(self, keys: Tensor, q: Tensor, k: Tensor, batch: tuple[int, ...]) -> Tensor:
        """Landmarks ``[..., L, H, K]`` of every head of every example, each with a key of its own."""
        H, dtype = q.shape[-2], q.dtype
        keys = random.fold_in(keys.unsqueeze(-2), torch.arange(H, device=q.device)).expand(*batch, H, 2)
        rows = (t.to(wide(dtype)).movedim(-2, -3).expand(*batch, H, -1, -1) for t in (q, k))
        flat = [t.reshape(-1, *t.shape[t.dim() - rank :]) for t, rank in ((keys, 1), *((t, 2) for t in rows))]
        with uncast(q):
            if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # it records no map
                marks = torch.stack([self.choose(*one) for one in zip(*flat, strict=True)])
            else:
                marks = func.vmap(self.choose)(*flat)
        return marks.reshape(*batch, H, self.landmarks, -1).movedim(-3, -2).to(dtype)

    def choose(self, key: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Landmarks ``[L, K]`` of one head, from ``q [M, K]`` and ``k [N, K]``."""
        L, (first, second) = self.landmarks, random.split(key)
        if self.selection == "random":
            return torch.cat([drawn(first, q, L - L // 2), drawn(second, k, L // 2)])
        if self.subsample < 1:
            q = drawn(first, q, max(int(self.subsample * len(q)), L))
        if self.selection == "orthogonal":
            return spread(second, q, L)
        return clustered(second, q, L, self.selection == "kmeans_spherical")


def drawn(key: Tensor, rows: Tensor, n: int) -> Tensor:
    """n of the rows, in their order."""
    return rows[random.permutation(key, len(rows))[:n].sort().values]


def directions(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


def spread(key: Tensor, rows: Tensor, n: int) -> Tensor:
    """n of the rows in their order: one at random, then each the row whose greatest |cos| to those before is least."""
    unit, places = directions(rows), torch.arange(len(rows), device=rows.device)
    latest = random.randint(key, (1,), 0, len(rows))
    nearest = torch.where(places == latest, torch.inf, 0.0)
    for _ in range(n - 1):
        along = (unit @ unit[latest].squeeze(0)).abs()
        latest = torch.maximum(nearest, along).argmin(0, keepdim=True)
        nearest = torch.where(places == latest, torch.inf, torch.maximum(nearest, along))
    return rows[torch.where(nearest == torch.inf, places, len(rows) - 1).sort().values[:n]]


def clustered(key: Tensor, rows: Tensor, n: int, spherical: bool) -> Tensor:
    """n centres of clusters, which begin as rows; one that nothing is nearest to stays where it is."""
    rows = directions(rows) if spherical else rows
    centres, numbers = drawn(key, rows, n), torch.arange(n, device=rows.device)
    for _ in range(STEPS):
        near = rows @ centres.mT if spherical else rows @ centres.mT - centres.square().sum(-1) / 2
        members = (near.argmax(-1, keepdim=True) == numbers).to(rows.dtype)
        count = members.sum(0).unsqueeze(-1)
        means = members.mT @ rows / count.clamp(min=1)
        centres = torch.where(count > 0, directions(means) if spherical else means, centres)
    return centres
