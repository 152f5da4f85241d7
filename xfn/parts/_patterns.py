"""Attention under a pattern that numbers alone tell: over its entries where they are few, else under it as a mask."""

from typing import Protocol

import torch
from torch import Tensor

from .._core.constants import constant
from .._core.pytree import mapped
from .._core.terms import Band, Corner
from ..bias import Bias, dense
from ..ops.attention import attention
from ..ops.sparse_attention import sparse_attention
from ..sparsity import Csr
from ._fields import drawing

Bands = tuple[tuple[int | None, int | None, Corner], ...]

FEW = 1 / 8
"""Of the coefficients: an entry costs what six to eight coefficients of a tile cost."""


class Patterned(Protocol):
    """A part whose fields tell its mask, ``[M, N]`` or ``[H, M, N]``."""

    @property
    def p(self) -> float: ...

    @property
    def scale(self) -> float | None: ...

    def mask(self, M: int, N: int, H: int) -> Tensor: ...

    def __hash__(self) -> int: ...


def attend(part: Patterned, q: Tensor, k: Tensor, v: Tensor, bias: Bias | Tensor | None, key: Tensor | None) -> Tensor:
    """Attention under a part's mask and a bias; bands, as a causal bias is, only take entries away."""
    bias, (p, key) = Bias.of(bias), drawing(part.p, key)
    (M, H), N = q.shape[-3:-1], k.shape[-3]
    if not (M and N):  # of nothing there is no pattern
        return attention(q, k, v, bias)
    bands = tuple((t.left, t.right, t.corner) for t in bias.terms if isinstance(t, Band))
    if len(bands) == len(bias.terms) and not torch.compiler.is_compiling():  # how many there are is data
        few = _entries(part, M, N, H, bands, q.device)
        if few is not None:
            return sparse_attention(few, q, k, v, p, part.scale, key=key)
    return attention(q, k, v, bias & dense(_mask(part, M, N, H, q.device)), p, part.scale, key=key)


@constant
def _mask(part: Patterned, M: int, N: int, H: int, device: torch.device) -> Tensor:
    return part.mask(M, N, H).to(device)


@constant
def _entries(part: Patterned, M: int, N: int, H: int, bands: Bands, device: torch.device) -> Csr | None:
    """The entries that bands leave, if they are few."""
    seen = part.mask(M, N, H) & Bias(tuple(Band(*band) for band in bands)).resolve(M, N).visible(M, N, None)[0]
    if seen.sum() > FEW * seen.numel():
        return None
    return mapped(lambda t: t.to(device), Csr.from_mask(seen))
