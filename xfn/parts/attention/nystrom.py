"""Attention by way of landmarks, the means of segments of the sequence.

    F = softmax(q k̃ᵀ / √K)      A = softmax(q̃ k̃ᵀ / √K)      W = softmax(q̃ kᵀ / √K) v      y = F A⁺ W + conv v

q̃ and k̃ are L means; where L does not divide the length, the last segments are one token longer. With as many
landmarks as tokens there is nothing to approximate, and attention is exact. A⁺ is the pseudo-inverse, by the
iteration Z ← ¼ Z (13 − AZ (15 − AZ (7 − AZ))) from Z = Aᵀ / max column sum of A, or by singular values.

Source: Xiong et al., "Nyströmformer" (2021); the iteration: Razavi et al. (2014).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._core.dims import Dims
from ..._core.errors import ShapeError
from ..._core.fields import check_fields
from ..._core.kinds import check_probability, wide
from ..._core.params import taken
from ..._core.shapes import Signature
from ...ops._init import even
from ...ops.attention import attention
from ...ops.softmax import softmax
from .._fields import Drops
from ._heads import alike, checked, dropped, hiding, only, uncast

SIGNATURE = Signature.parse("q M H K, k N G K, v N G V, conv.weight? H 1 J 1 -> y M H V")


@dataclass(frozen=True)
class Nystrom(Drops):
    """Attention in O(M + N), through L landmarks.

    Attributes:
        landmarks: L.
        exact: take the pseudo-inverse by singular values, instead of by iteration.
        iterations: how many steps the iteration takes.
        original_init: start the iteration from the greatest column sum of the whole batch, as first published, which
            converges more slowly and makes an example depend on those beside it; by default each matrix has its own.
        kernel: odd width J of a convolution of v along the sequence, one per head, that is added; by default none.
        p: probability of dropping from the result.

    Example:
        >>> part, q = Nystrom(landmarks=4), torch.ones(10, 2, 8)
        >>> part.apply({}, q, q, q).shape
        torch.Size([10, 2, 8])
    """

    mixes = True
    landmarks: int = 64
    exact: bool = False
    iterations: int = 6
    original_init: bool = False
    kernel: int | None = None
    p: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_probability(self.p)
        if self.landmarks < 1 or self.iterations < 0:
            raise ValueError(f"landmarks={self.landmarks} must be at least 1, iterations={self.iterations} at least 0")
        if self.kernel is not None and (self.kernel < 1 or not self.kernel % 2):
            raise ValueError(f"kernel={self.kernel} would change the length: it must be odd")

    def init(self, key: Tensor, dims: Dims) -> dict[str, Any]:
        """``{"conv": {"weight": [H, 1, J, 1]}}``, even in ±1/√J, or nothing where there is no convolution."""
        if self.kernel is None:
            return {}
        shape = dims.heads, 1, self.kernel, 1
        return {"conv": {"weight": even(key, *shape, bound=self.kernel**-0.5, dtype=torch.float32)}}

    def apply(
        self, params: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, kept: Tensor | None = None, *,
        key: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Attend by way of landmarks.

        Args:
            params: as :meth:`init` makes them.
            q, k, v: ``[..., M, H, K]``, ``[..., N, G, K]`` and ``[..., N, G, V]``.
            kept: boolean ``[..., N]``, True where a key is one; the result is that of a sequence without the others.
                With M = N, queries and keys are taken for the same tokens.
            key: what is dropped is drawn with it.

        Returns:
            ``[..., M, H, V]``.

        Raises:
            ShapeError: a convolution of v has another length than q.
        """
        t, sizes, _ = taken("nystrom", SIGNATURE, params, {"q": q, "k": k, "v": v})
        M, N, dtype = sizes["M"], sizes["N"], t["q"].dtype
        kept = checked(kept, N)
        with uncast(q):
            q, k, v = (x.to(wide(dtype)) for x in (t["q"], only(kept, t["k"]), only(kept, t["v"])))
            if self.landmarks >= min(M, N):
                y = attention(q, k, v, hiding(kept))
            else:
                y = self._approximate(only(kept, q) if M == N else q, k, v, kept)
            if "conv.weight" in t:
                if M != N:
                    raise ShapeError(f"nystrom adds a convolution of v to the result, but M={M} is not N={N}")
                y = y + convolved(alike(v, sizes["H"]), t["conv.weight"].to(v.dtype))
        return dropped(y.to(dtype), self.p, key)

    def _approximate(self, q: Tensor, k: Tensor, v: Tensor, kept: Tensor | None) -> Tensor:
        L, H, same = self.landmarks, q.shape[-2], q.shape[-3] == k.shape[-3]
        if kept is None:
            few, live, marks, points = None, None, means(q, L), means(k, L)
        else:
            shares = members(kept, L)
            live, few = shares.any(-1), kept.sum(-1) <= L
            marks, points = pooled(shares, q) if same else means(q, L), pooled(shares, k)
        points = alike(points, H)
        logits = torch.einsum("...ihk,...jhk->...hij", marks * q.shape[-1] ** -0.5, points)
        between = softmax(logits, hiding(live))
        if live is not None and same:
            between = torch.where(live[..., None, :, None], between, 0)
        seen = attention(marks, k, v, hiding(kept))
        values = torch.einsum("...hij,...jhv->...ihv", self.inverse(between), seen)
        if kept is not None and few is not None:
            values = torch.where(few[..., None, None, None], alike(pooled(shares, v), H), values)
        return attention(q, points, values, hiding(live))

    def inverse(self, a: Tensor) -> Tensor:
        """The pseudo-inverse of stochastic matrices ``[..., L, L]``."""
        if self.exact:
            found: Tensor = torch.linalg.pinv(a)
            return found
        sums = a.sum(-2)
        most = sums.amax() if self.original_init else sums.amax(-1)[..., None, None]
        z, one = a.mT / torch.where(most == 0, 1, most), torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        for _ in range(self.iterations):
            az = a @ z
            z = 0.25 * z @ (13 * one - az @ (15 * one - az @ (7 * one - az)))
        return z


def means(x: Tensor, L: int) -> Tensor:
    """The means of L segments of ``[..., N, H, K]``, the last N mod L of them one longer: ``[..., L, H, K]``."""
    short, longer = divmod(int(x.shape[-3]), L)
    split = (L - longer) * short
    parts = ((x[..., :split, :, :], short), (x[..., split:, :, :], short + 1))
    return torch.cat([part.unflatten(-3, (-1, size)).mean(-3) for part, size in parts if part.shape[-3]], -3)


def members(kept: Tensor, L: int) -> Tensor:
    """Which of the tokens ``[..., N]`` that are kept are in which of their L segments: ``[..., L, N]``."""
    count, place = kept.sum(-1, keepdim=True), kept.cumsum(-1) - 1
    short, longer = count // L, count % L
    split = (L - longer) * short
    first, last = place // short.clamp(min=1), L - longer + (place - split) // (short + 1)
    segment = torch.where(place < split, first, last)
    return (segment.unsqueeze(-2) == torch.arange(L, device=kept.device)[:, None]) & kept.unsqueeze(-2)


def pooled(members: Tensor, x: Tensor) -> Tensor:
    """The means of the members of segments, or zero where there are none."""
    shares = members.to(x.dtype) / members.sum(-1, keepdim=True).clamp(min=1)
    return torch.einsum("...ln,...nhk->...lhk", shares, x)


def convolved(v: Tensor, weight: Tensor) -> Tensor:
    """Each head of ``[..., N, H, V]`` along the sequence, by ``[H, 1, J, 1]``, zeros around."""
    if not v.numel():
        return v
    planes = v.movedim(-2, -3)
    flat = planes.reshape(-1, *planes.shape[-3:])
    y = torch.nn.functional.conv2d(flat, weight, padding=(weight.shape[-2] // 2, 0), groups=weight.shape[0])
    return y.reshape(planes.shape).movedim(-3, -2)
