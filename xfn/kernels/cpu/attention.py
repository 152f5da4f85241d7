"""Attention in C++, every member of the family: see xfn/csrc/cpu.

Kernels take clean numbers. Behind a mask, a key or a query that is not finite is made zero before, and marked with a
NaN that is added to the logits of those it meets; a mask hides the mark as it hides all else.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from ..._core.dispatch import Call
from ..._core.kinds import finite, wide
from ..._core.philox import threshold
from .library import isa

Maybe = Tensor | None
Group = Sequence[Maybe]

isa()
OPS = torch.ops.xfn_cpu


def supports(call: Call) -> list[str]:
    device = call.tensors["q"].device.type
    return [] if device == "cpu" else [f"it runs on the cpu, not on {device}"]


def forward(x: Group, c: Group, *, p: float, scale: float) -> tuple[Tensor, Tensor]:
    (x,), _, marks = _clean(c, [x], [])
    return OPS.attention_forward(*_wide(x, x), *c, *marks, scale, _threshold(c, p))  # type: ignore[no-any-return]


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float, scale: float) -> list[Maybe]:
    (x,), (y, dy), marks = _clean(c, [x], [y, dy])
    args = (*_wide(x, x), *c, *marks, *y, *dy, scale, _threshold(c, p), _bits(needs))
    return _fit(OPS.attention_backward(*args), x, needs)


def jvp(x: Group, c: Group, y: Group, tx: Group, *, p: float, scale: float) -> tuple[Tensor, Tensor]:
    (x, tx), (y,), marks = _clean(c, [x, tx], [y])
    args = (*_wide(x, x), *c, *marks, *y, *_wide(tx, x), scale, _threshold(c, p))
    return OPS.attention_jvp(*args)  # type: ignore[no-any-return]


def hvp(
    x: Group, c: Group, y: Group, ty: Group, dy: Group, tx: Group, tdy: Group, needs: Sequence[bool],
    *, p: float, scale: float,
) -> list[Maybe]:  # fmt: skip
    (x, tx), (y, ty, dy, tdy), marks = _clean(c, [x, tx], [y, ty, dy, tdy])
    args = (*_wide(x, x), *c, *marks, *y, *ty, *dy, *_wide(tx, x), *tdy, scale, _threshold(c, p), _bits(needs))
    return _fit(OPS.attention_hvp(*args), x, needs)


def jvp2(
    x: Group, c: Group, y: Group, uy: Group, wy: Group, ux: Group, wx: Group, *, p: float, scale: float
) -> tuple[Tensor, Tensor]:
    (x, ux, wx), (y, uy, wy), marks = _clean(c, [x, ux, wx], [y, uy, wy])
    args = (*_wide(x, x), *c, *marks, *y, *uy, *wy, *_wide(ux, x), *_wide(wx, x), scale, _threshold(c, p))
    return OPS.attention_jvp2(*args)  # type: ignore[no-any-return]


def _clean(c: Group, xs: list[Group], ys: list[Group]) -> tuple[list[Group], list[Group], tuple[Maybe, Maybe]]:
    """x and its tangents, y and its tangents and cotangents, all finite, and the marks of queries and of keys."""
    if all(t is None for t in (xs[0][3], *c[:2])):
        return xs, ys, (None, None)
    queries = [t for group in (*xs, *ys) if (t := group[0]) is not None]
    keys = [t for group in xs for t in group[1:3] if t is not None]
    moves = [t for group in (*(x[3:] for x in xs[1:]), *(y[1:] for y in ys[1:])) for t in group if t is not None]
    if finite(*queries, *keys, *moves):
        return xs, ys, (None, None)
    spoilt, unsound = (reduce(torch.logical_or, (~t.isfinite().all(-1) for t in ts)) for ts in (queries, keys))
    marks = [torch.where(bad, torch.nan, 0.0).to(wide(queries[0].dtype)).mT.contiguous() for bad in (spoilt, unsound)]
    xs = [[_zero(x[0], spoilt), _zero(x[1], unsound), _zero(x[2], unsound), *x[3:]] for x in xs]
    return xs, [[_zero(y[0], spoilt), *y[1:]] for y in ys], (marks[0], marks[1])


def _zero(t: Maybe, where: Tensor) -> Maybe:
    return None if t is None else torch.where(where.unsqueeze(-1), 0, t)


def _wide(x: Group, like: Group) -> list[Maybe]:
    """Slopes in the dtype of sums."""
    q, slopes = like[0], x[4]
    assert q is not None
    return [*x[:4], None if slopes is None else slopes.to(wide(q.dtype))]


def _threshold(c: Group, p: float) -> int:
    return 0 if c[2] is None else threshold(p)


def _bits(needs: Sequence[bool]) -> int:
    return sum(1 << i for i, need in enumerate(needs) if need)


def _fit(grads: Sequence[Tensor], x: Group, needs: Sequence[bool]) -> list[Maybe]:
    """Each gradient in the shape of its operand: kernels give one per example, and of slopes one per query."""
    found: list[Maybe] = []
    for i, (grad, t, need) in enumerate(zip(grads, x, needs, strict=True)):
        if t is None or not need:
            found.append(None)
        else:
            found.append((grad.sum(-1) if i == 4 else grad).sum_to_size(t.shape).to(t.dtype))
    return found
