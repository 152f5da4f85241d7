"""What attentions within heads share: key heads as many as query heads, keys that are padding, and what is dropped."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ... import bias, random
from ..._core.errors import ShapeError
from ..._core.shapes import Shape
from ...bias import Bias
from ...ops.dropout import dropout


def alike(t: Tensor, H: int) -> Tensor:
    """``[..., N, G, K]`` with each key head as often as query heads read it: ``[..., N, H, K]``."""
    return t if t.shape[-2] == H else t.repeat_interleave(H // t.shape[-2], -2)


def checked(kept: Tensor | None, N: int) -> Tensor | None:
    """``kept [..., N]``, when it is in order."""
    if kept is None:
        return None
    if not isinstance(kept, Tensor) or kept.dtype != torch.bool:
        got = kept.dtype if isinstance(kept, Tensor) else type(kept).__name__
        raise TypeError(f"kept is boolean, True where a key is one, but got {got}: write kept.bool()")
    if not kept.dim() or kept.shape[-1] != N:
        raise ShapeError(f"kept [..., N] has shape {list(kept.shape)}, but k has N={N}")
    return kept


def uncast(t: Tensor) -> AbstractContextManager[None]:
    """Where ``torch.autocast`` asks for nothing, for products whose digits count."""
    return nullcontext() if t.is_meta else torch.autocast(t.device.type, enabled=False)


def hiding(kept: Tensor | None) -> Bias | None:
    """The bias that hides the keys ``[..., N]`` which are none."""
    return None if kept is None else bias.dense(kept[..., None, None, :])


def only(kept: Tensor | None, t: Tensor) -> Tensor:
    """``t [..., N, H, K]`` with zeros for the tokens that are none."""
    return t if kept is None else torch.where(kept[..., None, None], t, 0)


def each(key: Tensor, batch: Shape, n: int) -> tuple[Tensor, ...]:
    """n keys for every example: its key's children."""
    keys = random.spread(key, batch)
    return tuple(random.fold_in(keys, i) for i in range(n))


def dropped(y: Tensor, p: float, key: Tensor | None) -> Tensor:
    """``y [..., M, H, V]`` after dropout, or as it is in evaluation, where there is no key."""
    return y if key is None or not p else dropout(y.flatten(-2), p, key=key).unflatten(-1, y.shape[-2:])
