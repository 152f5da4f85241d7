"""Softmax in C++: see xfn/csrc/cpu/soften.h."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._core.shapes import broadcast
from .library import detail, swift
from .rows import SOFTMAX, SOFTMAX_BACKWARD, Maybe, Parts
from .rows import certain as certain
from .rows import supports as supports

DETAIL, SWIFT = detail(), swift("softmax")

Group = Sequence[Maybe]


def forward(x: Group, c: Group, *, logarithm: bool = False) -> tuple[Tensor]:
    (given,) = x
    assert given is not None
    bounds = [t for t in c if t is not None]
    if not bounds:
        return (SOFTMAX(given, None, None, 0, logarithm),)
    batch = broadcast((tuple(given.shape[:-1]), *(tuple(t.shape) for t in bounds)))
    rows = batch[-1]
    lo, hi = (
        t if t is None else t.reshape(1, rows) if t.numel() == rows else t.expand(batch).reshape(-1, rows) for t in c
    )
    return (SOFTMAX(given.expand(*batch, given.shape[-1]), lo, hi, len(batch) - 1, logarithm),)


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, logarithm: bool = False) -> list[Maybe]:
    (given,), (out,), (d,) = x, y, dy
    assert given is not None
    assert out is not None
    if d is None:
        return [torch.zeros_like(given)]
    parts = Parts.of([out, d], [])
    if parts is not None:
        out, d = parts.rows(out), parts.rows(d)
    return [SOFTMAX_BACKWARD(out, d, logarithm).sum_to_size(given.shape)]
