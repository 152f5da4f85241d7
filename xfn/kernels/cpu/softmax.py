"""Softmax in C++: see xfn/csrc/cpu/soften.h."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._core.shapes import broadcast
from .library import detail, swift
from .rows import SOFTMAX, SOFTMAX_BACKWARD, Maybe
from .rows import certain as certain
from .rows import supports as supports

DETAIL, SWIFT = detail(), swift("softmax")

Group = Sequence[Maybe]


def spread(rows: Sequence[Tensor], c: Group) -> tuple[list[Tensor], list[Maybe], int]:
    """Rows of one batch, their bounds as kernels take them, and how many of its dims are parts."""
    shapes = [tuple(t.shape[:-1]) for t in rows]
    bounds = [tuple(t.shape) for t in c if t is not None]
    if not bounds and len(set(shapes)) == 1:
        return [*rows], [*c], 0
    batch = broadcast((*shapes, *bounds))
    M = batch[-1] if bounds else 0
    flat = [None if t is None else t.reshape(1, M) if t.numel() == M else t.expand(batch).reshape(-1, M) for t in c]
    return [t.expand(*batch, t.shape[-1]) for t in rows], flat, len(batch) - 1 if bounds else 0


def forward(x: Group, c: Group, *, logarithm: bool = False) -> tuple[Tensor]:
    (given,) = x
    assert given is not None
    (given,), bounds, outer = spread([given], c)
    return (SOFTMAX(given, *bounds, outer, logarithm),)


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, logarithm: bool = False) -> list[Maybe]:
    (given,), (out,), (d,) = x, y, dy
    assert given is not None
    assert out is not None
    if d is None:
        return [torch.zeros_like(given)]
    (out, d, *rest), bounds, outer = spread([out, d, *([given] if logarithm else [])], c)
    return [SOFTMAX_BACKWARD(rest[0] if rest else None, *bounds, out, d, outer, logarithm).sum_to_size(given.shape)]
