"""Merging attentions over disjoint key sets.

    lse = log Σᵢ exp(lseᵢ)        out = Σᵢ exp(lseᵢ − lse) outᵢ

Source: the rescaling step of online softmax (Milakov and Gimelshein, 2018), applied to whole attentions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._core.errors import ShapeError
from .._core.kinds import check_kinds, check_tensors, wide
from .._core.shapes import Signature

PART = Signature.parse("out M H V, lse H M -> out M H V")


def merge_attentions(outs: Sequence[Tensor] | Tensor, lses: Sequence[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
    """The attention over the union of key sets, from the attentions over each.

    lse = log Σᵢ exp(lseᵢ) and out = Σᵢ exp(lseᵢ − lse) outᵢ; a part that sees no key (lseᵢ = −∞) adds nothing.

    Args:
        outs: one ``[..., M, H, V]`` per part, or all stacked on a leading axis.
        lses: as many ``[..., H, M]``, of the same queries against disjoint keys.

    Returns:
        ``(out, lse)`` in the dtypes of the parts; gradients flow through both.

    Raises:
        ShapeError: the parts contradict each other.
        TypeError, ValueError: their dtypes or devices differ.

    Example:
        >>> from xfn import attention, attention_with_lse, random
        >>> q, k, v = random.normal(random.key(0), (3, 6, 2, 8))
        >>> halves = [attention_with_lse(q, k[n], v[n]) for n in (slice(0, 2), slice(2, 6))]
        >>> out, lse = merge_attentions(*zip(*halves))
        >>> torch.allclose(out, attention(q, k, v), atol=1e-6)
        True
    """
    outs, lses = tuple(outs), tuple(lses)
    if not outs or len(outs) != len(lses):
        raise ShapeError(f"a merge needs one lse for every out and at least one, but got {len(outs)} and {len(lses)}")
    check_tensors({f"outs[{i}]": out for i, out in enumerate(outs)} | {f"lses[{i}]": t for i, t in enumerate(lses)})
    check_kinds({f"outs[{i}]": out for i, out in enumerate(outs)}, {f"lses[{i}]": t for i, t in enumerate(lses)})
    check_kinds({f"lses[{i}]": lse for i, lse in enumerate(lses)}, {})
    parts = []
    for out, lse in zip(outs, lses, strict=True):
        _, batch = PART.check({"out": out, "lse": lse})
        parts.append((out.expand(*batch, *out.shape[-3:]), lse.expand(*batch, *lse.shape[-2:])))
        if parts[-1][0].shape != parts[0][0].shape:
            raise ShapeError(f"the parts differ: out is {list(parts[-1][0].shape)} beside {list(parts[0][0].shape)}")
    out, lse = (torch.stack(tensors) for tensors in zip(*parts, strict=True))

    sees = lse != -torch.inf
    top = lse.detach().amax(0)
    top = torch.where(top == -torch.inf, 0, top)
    weights = torch.where(sees, (torch.where(sees, lse, 0) - top).exp(), 0)
    total = weights.sum(0)
    some = total != 0
    total = torch.where(some, total, 1)
    sees, shares = sees.mT.unsqueeze(-1), (weights / total).mT.unsqueeze(-1)  # [i, ..., M, H, 1]
    mixed = (torch.where(sees, out.to(wide(out.dtype)), 0) * shares).sum(0)
    return mixed.to(out.dtype), torch.where(some, total.log() + top, -torch.inf)
