"""Rows of a batch of any shape, whose first dims are parts where rows do not share all."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .shapes import Shape, broadcast, whole

Maybe = Tensor | None


def cotangent(dy: Maybe, y: Maybe) -> Tensor:
    """dy, or zeros like y."""
    assert y is not None
    return torch.zeros_like(y) if dy is None else dy


def fit(grad: Maybe, t: Maybe, need: bool = True) -> Maybe:
    """A gradient in the shape and dtype of its operand, where it is needed."""
    return None if grad is None or t is None or not need else grad.sum_to_size(t.shape).to(t.dtype).contiguous()


def passed(d: Tensor, t: Maybe, need: bool) -> Maybe:
    """The gradient of what was added: d itself, in memory of its own and with the batch of its operand."""
    if t is None or not need:
        return None
    return whole(d, t.shape).clone().sum_to_size(t.shape).to(t.dtype)


class Parts(NamedTuple):
    """The ``batch`` of ``[..., E]``; its first ``outer`` dims are parts, and what rows share is one line for each."""

    batch: Shape
    outer: int

    @staticmethod
    def of(rows: Sequence[Maybe], shared: Sequence[Maybe], inner: int | None = None) -> "Parts | None":
        """Parts as large as what rows share allows, or with ``inner`` dims of the batch. None: nothing broadcasts, and
        all is one part."""
        first = rows[0]
        assert first is not None
        E, alike = first.shape[-1], all(t is None or t.shape == first.shape for t in rows)
        if inner is None and alike and all(t is None or (t.numel() == E and t.dim() <= first.dim()) for t in shared):
            return None
        batch = broadcast(tuple(tuple(t.shape[:-1]) for t in (*rows, *shared) if t is not None))
        if inner is not None:
            return Parts(batch, len(batch) - inner)
        own = [(*(1 for _ in range(len(batch) + 1 - t.dim())), *t.shape[:-1]) for t in shared if t is not None]
        outer = len(batch)
        while outer and all(shape[outer - 1] == 1 for shape in own):
            outer -= 1
        return Parts(batch, outer)

    @property
    def sizes(self) -> tuple[int, int]:
        """P parts of R rows."""
        return math.prod(self.batch[: self.outer]), math.prod(self.batch[self.outer :])

    def rows(self, t: Maybe) -> Maybe:
        """``[..., E]`` of the whole batch."""
        return None if t is None else t.expand(*self.batch, t.shape[-1])

    def flat(self, t: Maybe) -> Maybe:
        """``[..., E]`` as ``[P, R, E]``."""
        return None if t is None else t.expand(*self.batch, t.shape[-1]).reshape(*self.sizes, t.shape[-1])

    def shared(self, t: Maybe, rank: int = 1) -> Maybe:
        """``[..., E]`` as ``[P, E]``, of which those that are equal are one line; or what has more dims than a line."""
        if t is None:
            return None
        inner, own = len(self.batch) - self.outer, t.shape[-rank:]
        lines = t.reshape(t.shape[: max(0, t.dim() - rank - inner)] + own)
        return lines.expand(*self.batch[: self.outer], *own).reshape(self.sizes[0], *own)

    def grad(self, found: Tensor, t: Maybe, need: bool) -> Maybe:
        """A gradient of the whole batch, in the shape of its operand."""
        return found.sum_to_size(t.shape) if need and t is not None else None

    def shared_grad(self, found: Tensor, t: Maybe, need: bool) -> Maybe:
        """A gradient that has a line for each part, in the shape of its operand."""
        ones = (1,) * (len(self.batch) - self.outer)
        return self.grad(found.view(*self.batch[: self.outer], *ones, found.shape[-1]), t, need) if need else None
