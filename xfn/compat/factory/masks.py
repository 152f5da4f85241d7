"""What modules are given, as functions take it."""

import warnings
from typing import Any

import torch
from torch import Tensor

from ...bias import Bias
from ...factory.stack import Stack
from ...factory.sublayer import Attention
from ...parts.position.none import None_
from ..components.attention import AttentionMask


def entered(stack: Stack | None, x: Tensor) -> Tensor:
    """What positions are added to: numbers ``[batch, length]`` stand for all features."""
    if stack is None or x.dim() != 2:
        return x
    first: Any = stack.stages[0]
    if first.embeds or first.patch or isinstance(first.position, None_):
        return x
    x = x if x.is_floating_point() else x.float()
    return x.unsqueeze(-1).expand(*x.shape, getattr(first.position, "width", first.dims.model))


def padding(mask: Tensor | None, *stacks: Stack | None) -> Tensor | None:
    """A bias ``[batch, 1, 1, N]`` of True or 1 for what is there; with a −∞, a mask is added to logits.

    Where nothing can be added to the logits of an attention, −∞ hides all the same.
    """
    if mask is None:
        return None
    mask = mask[..., None, None, :]
    if mask.dtype == torch.bool or bool(((mask == 0) | (mask == 1)).all()):
        return mask.bool()
    if not bool((mask == -torch.inf).any()):
        raise ValueError("an input mask says what is there: it holds True and False, or 1 and 0, or hides by −∞")
    every = [s for stack in stacks if stack for stage in stack.stages for s in stage.sublayers]
    stiff = sorted({s.called for s in every if isinstance(s, Attention) and "bias" not in s.takes})
    if not stiff:
        return mask
    if bool(((mask != 0) & (mask != -torch.inf)).any()):
        warnings.warn(f"{', '.join(stiff)} can hide keys and add nothing: of the input mask, −∞ counts", stacklevel=4)
    return mask != -torch.inf


def seen(mask: Any, there: Tensor | None) -> Bias | None:
    """What both masks leave."""
    if mask is None and there is None:
        return None
    found = Bias.of(there)
    if mask is not None:
        found = found + Bias.of((mask.values if isinstance(mask, AttentionMask) else mask).unsqueeze(-3))
    return found
