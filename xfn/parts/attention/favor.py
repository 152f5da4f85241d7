"""Attention in linear time by random features of the softmax kernel.

    exp(q·k / √K) = mean of φ(q)·φ(k)        y = φ(q) Σₙ φ(kₙ) vₙ / φ(q) Σₙ φ(kₙ)

    φ(x) = exp(w·x̂ − ½|x̂|²) / √F        x̂ = x / K^¼        F features w, the columns of a matrix [K, F]

Within blocks of K, features are orthogonal. Their lengths are those of normal vectors, or √K; with ``sm_hyp`` and
``sm_reg`` each stands for itself and its opposite. Features of length √K estimate a kernel that is smaller, by a share
of about ``|q̂ + k̂|⁴ / 4K`` where that is small, with less variance.

No exponential exceeds 1 and none that matters is lost. The features of keys are divided by the greatest one in sight,
and those of a query multiplied by it, so that the sum which divides is at least 1. Where a query sees the past alone,
the greatest ones are those of the past: of all chunks before, and within a chunk of its halves, halves of halves, and
so on. It takes O(M + N), and the future changes no bit of what comes before.

Source: Choromanski et al., "Rethinking attention with Performers" (2020).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, func

from ... import random
from ..._core.dims import Dims
from ..._core.errors import ShapeError
from ..._core.fields import check_fields
from ..._core.kinds import check_kinds, check_probability, wide
from ..._core.params import taken
from ..._core.shapes import Signature
from ...ops.attention import attention
from ._heads import alike, checked, dropped, each, only, uncast

SIGNATURE = Signature.parse("q M H K, k N G K, v N G V, features K F -> y M H V")
CHUNK = 64
"""Keys whose sums are kept together; a power of two."""
Seen = tuple[Tensor, Tensor]
"""A weighted sum of values ``[..., M, V]``, and the logarithm ``[..., M, 1]`` of what it was divided by."""


@dataclass(frozen=True)
class Favor:
    """Softmax attention, estimated in O(M + N) by positive orthogonal random features.

    Attributes:
        features: how many there are, opposites included; by default about K (1 + log₂ K).
        feature_map: ``"sm_orf"``, ``"sm_hyp"``, whose features come with their opposites, or ``"sm_reg"``, whose
            features have the length √K besides.
        redraw: draw new features from the key of every call that has one, for each example.
        p: probability of dropping from the result.

    Example:
        >>> part, q = Favor(), random.normal(random.key(0), (10, 2, 8))
        >>> params = part.init(random.key(1), Dims(model=16, heads=2))
        >>> part.apply(params, q, q, q, causal=True).shape
        torch.Size([10, 2, 8])
    """

    features: int | None = None
    feature_map: Literal["sm_orf", "sm_hyp", "sm_reg"] = "sm_reg"
    redraw: bool = False
    p: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_probability(self.p)
        if self.feature_map not in ("sm_orf", "sm_hyp", "sm_reg"):
            raise ValueError(f"feature_map={self.feature_map!r} is none of 'sm_orf', 'sm_hyp', 'sm_reg'")
        if self.features is not None and (self.features < 1 or (self._paired and self.features % 2)):
            raise ValueError(f"features={self.features} of {self.feature_map} cannot be: give a positive even number")

    @property
    def draws(self) -> bool:
        """Whether it uses the key of a call."""
        return self.redraw or self.p > 0

    @property
    def _paired(self) -> bool:
        return self.feature_map != "sm_orf"

    def init(self, key: Tensor, dims: Dims) -> dict[str, Any]:
        """``{"features": [K, F]}``, or half as many columns where opposites come with them.

        They are kept with the parameters, so that they are saved, moved and mapped with them, but no gradient flows
        into them; an optimiser that decays weights should leave them out.
        """
        return {"features": self.draw(key, dims.head, self._count(dims.head))}

    def _count(self, K: int) -> int:
        """How many columns there are."""
        wanted = self.features or max(2, 2 * (math.ceil(K * (1 + math.log2(K))) // 2))
        return wanted // 2 if self._paired else wanted

    def draw(self, key: Tensor, K: int, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """``count`` columns of K numbers, orthogonal in blocks of K."""
        blocks, lengths = random.fold_in(key, 0), random.fold_in(key, 1)
        q, r = torch.linalg.qr(random.normal(blocks, (-(-count // K), K, K), dtype=torch.float64))
        even: Tensor = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
        columns = even.movedim(0, 1).reshape(K, -1)[:, :count]
        if self.feature_map == "sm_reg":
            norms = columns.new_full((count,), math.sqrt(K))
        else:
            norms = random.normal(lengths, (count, K), dtype=torch.float64).square().sum(-1).sqrt()
        return (columns * norms).to(dtype).contiguous()

    def apply(
        self, params: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, causal: bool = False,
        kept: Tensor | None = None, *, key: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Attend by way of features.

        Args:
            params: as :meth:`init` makes them.
            q, k, v: ``[..., M, H, K]``, ``[..., N, G, K]`` and ``[..., N, G, V]``.
            causal: each query sees the keys up to its own place; M must be N.
            kept: boolean ``[..., N]``, True where a key is one; the others are not seen.
            key: features are drawn with it, where they are redrawn, and what is dropped.

        Returns:
            ``[..., M, H, V]``; zeros for a query that sees nothing.

        Raises:
            ShapeError: of M queries and N keys there is no common past.
        """
        t, sizes, batch = taken("favor", SIGNATURE, params, {"q": q, "k": k, "v": v}, mixed=True)
        check_kinds({"q": q, "k": k, "v": v}, {})
        M, N, H = (sizes[letter] for letter in "MNH")
        if causal and M != N:
            raise ShapeError(f"causal favor has one key for each query, but M={M} is not N={N}")
        kept, dtype = checked(kept, N), q.dtype
        if not math.prod((*batch, M, N)):  # attention to nothing: zeros
            return attention(q, k, v)
        features, dropping = t["features"].detach(), None
        if key is not None:
            drawing, dropping = each(key, batch, 2)
            features = self._redrawn(drawing, features) if self.redraw else features
        with uncast(q):
            q, k, v = (alike(x.to(wide(dtype)), H).movedim(-2, -3) for x in (q, only(kept, k), only(kept, v)))
            lq, lk = (self.logarithms(x, features.to(q.dtype)) for x in (q, k))
            if kept is not None:
                lk = torch.where(kept[..., None, :, None], lk, -torch.inf)
            v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
            y, _ = past(lq, lk, v) if causal else seen(lq, lk, v)
            y, total = y[..., :-1], y[..., -1:]
            y = (y / torch.where(total == 0, 1, total)).movedim(-3, -2)
        return dropped(y.to(dtype), self.p, dropping)

    def _redrawn(self, keys: Tensor, features: Tensor) -> Tensor:
        """Features for every example, one set for all its heads: ``[..., 1, K, F]``."""
        K, count = features.shape

        def draw(key: Tensor) -> Tensor:
            return self.draw(key, K, count)

        drawn: Tensor = func.vmap(draw)(keys.reshape(-1, 2)) if keys.dim() > 1 else draw(keys)
        return drawn.reshape(*keys.shape[:-1], 1, K, count)

    def logarithms(self, x: Tensor, features: Tensor) -> Tensor:
        """log φ of ``x [..., M, K]``: ``[..., M, F]``."""
        x = x * x.shape[-1] ** -0.25
        along = x @ features
        along = torch.cat([along, -along], -1) if self._paired else along
        return along - (x.square().sum(-1, keepdim=True) / 2 + math.log(along.shape[-1]) / 2)


def finite(t: Tensor) -> Tensor:
    """Zero for the logarithm of zero."""
    return torch.where(t == -torch.inf, 0, t)


def lifted(lq: Tensor, ceiling: Tensor) -> Seen:
    """exp(lq + ceiling) over its greatest number in a row, and the logarithm of that."""
    s = lq + finite(ceiling)
    top = s.detach().amax(-1, keepdim=True)
    return (s - top).exp(), torch.where(ceiling.amax(-1, keepdim=True) == -torch.inf, -torch.inf, top)


def sunk(lk: Tensor) -> tuple[Tensor, Tensor]:
    """exp lk over its greatest number in a column, and the logarithm ``[..., 1, F]`` of that."""
    ceiling = lk.detach().amax(-2, keepdim=True)
    return (lk - finite(ceiling)).exp(), ceiling


def seen(lq: Tensor, lk: Tensor, v: Tensor) -> Seen:
    """What queries see that see every key: Σ_f exp lq[m, f] Σₙ exp lk[n, f] v[n]."""
    keys, ceiling = sunk(lk)
    queries, top = lifted(lq, ceiling)
    M, N, F, V = *lq.shape[-2:-1], *lk.shape[-2:], v.shape[-1]
    return (queries @ keys.mT) @ v if M * N * (F + V) < (M + N) * F * V else queries @ (keys.mT @ v), top


def merged(a: Seen, b: Seen) -> Seen:
    """What is seen in one place and in another."""
    top = torch.maximum(a[1], b[1])
    return a[0] * (a[1] - finite(top)).exp() + b[0] * (b[1] - finite(top)).exp(), top


def past(lq: Tensor, lk: Tensor, v: Tensor) -> Seen:
    """What each query sees that sees the keys up to its own place."""
    M, chunk = lq.shape[-2], 1
    while chunk < min(M, CHUNK):
        chunk *= 2
    extra = -M % chunk
    lq, v = (torch.nn.functional.pad(t, (0, 0, 0, extra)) for t in (lq, v))
    lk = torch.nn.functional.pad(lk, (0, 0, 0, extra), value=-torch.inf)
    lq, lk, v = (t.unflatten(-2, (-1, chunk)) for t in (lq, lk, v))
    own = lq + lk
    top = own.detach().amax(-1, keepdim=True)
    y = (own - finite(top)).exp().sum(-1, keepdim=True) * v
    y, top = merged(within((y, top), lq, lk, v), before(lq, lk, v))
    return tuple(t.flatten(-3, -2)[..., :M, :] for t in (y, top))  # type: ignore[return-value]


def within(own: Seen, lq: Tensor, lk: Tensor, v: Tensor) -> Seen:
    """Besides its own place, the keys before it in its chunk: of blocks of two halves, the right one sees the left."""
    y, top = own
    for half in (2**i for i in range(lq.shape[-2].bit_length() - 1)):
        halves = [t.unflatten(-2, (-1, 2, half)).unbind(-3) for t in (lq, lk, v, y, top)]
        (_, q), (k, _), (values, _), (y0, y1), (top0, top1) = halves
        y1, top1 = merged((y1, top1), seen(q, k, values))
        y, top = (torch.stack(pair, -3).flatten(-4, -2) for pair in ((y0, y1), (top0, top1)))
    return y, top


def before(lq: Tensor, lk: Tensor, v: Tensor) -> Seen:
    """The keys of all chunks ``[..., chunk, M, F]`` before its own."""
    keys, ceilings = sunk(lk)
    sums, ceilings = keys.mT @ v, ceilings.mT  # [..., chunk, F, V], [..., chunk, F, 1]
    chunks = list(zip(sums.unbind(-3), ceilings.unbind(-3), strict=True))
    states: list[Seen] = [(torch.zeros_like(chunks[0][0]), torch.full_like(chunks[0][1], -torch.inf))]
    for chunk in chunks[:-1]:
        states.append(merged(states[-1], chunk))
    sums, ceilings = (torch.stack(part, -3) for part in zip(*states, strict=True))
    queries, top = lifted(lq, ceilings.mT)
    return queries @ sums, top
