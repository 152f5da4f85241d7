"""Attention in C++, every member of the family: see xfn/csrc/cpu.

Zero times NaN is NaN, so a key or a query that is not finite would pass a mask. That it did can be seen in the results;
then the call is made again, with zeros in its place, and with marks: NaNs that are added to the logits of those it
meets, and that a mask hides as it hides all else.

A boolean mask is looked at first: see mask.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._core.choice import ENTRIES
from ..._core.definition import bits
from ..._core.dispatch import Call
from ..._core.kinds import FLOATS, broken, lost, wide
from ..._core.philox import threshold
from . import sparse_attention
from .library import detail, swift
from .mask import Counted, counted

Maybe = Tensor | None
Group = Sequence[Maybe]
Groups = Sequence[Group]
Results = Sequence[Any]

DETAIL, SWIFT = detail(), swift("attention")
BARE, BARE_BACKWARD, FORWARD, DUAL, BACKWARD, JVP, HVP, JVP2 = (
    getattr(torch.ops.xfn_cpu, f"attention_{member}").default
    for member in ("bare", "bare_backward", "forward", "dual", "backward", "jvp", "hvp", "jvp2")
)


def supports(call: Call) -> list[str]:
    q, dense, lse = call.tensors["q"], call.tensors["dense"], call.tensors.get("lse")
    if q.device.type != "cpu":
        return [f"it runs on the cpu, not on {q.device.type}"]
    if dense is None or dense.dtype == torch.bool:
        return []
    if dense.dtype not in FLOATS:
        return [f"it adds no {dense.dtype}"]
    if lse is not None and lost(lse):
        return ["a bias hides whole rows by numbers so large that lse has lost their sum: hide by −∞ or False"]
    return []


def certain(device: str, given: tuple[str, ...]) -> bool:
    return device == "cpu" and "dense" not in given


def forward(x: Group, c: Group, *, p: float, scale: float, block: float = 0.0) -> Sequence[Tensor]:
    if not block and _bare(x, c):
        out, lse, leaked = BARE(x[0], x[1], x[2], c[0], c[1], scale)
        if not (leaked and _hides(c)):
            return out, lse
    found = None if block else counted(x, c, entries=True)
    if found is not None and found.choice.way == ENTRIES:
        return sparse_attention.forward(x[:3], (*found.entries(by_column=False), c[2]), p=p, scale=scale)
    [x], c, block = _tiled(found, [x], c, block)
    numbers = _numbers(c, p, scale, block)
    call = lambda x, y, marks: FORWARD(*_wide(x[0], x[0]), *_given(c, marks), *numbers)
    return _run(call, c, [x], [])


def dual(x: Group, c: Group, tx: Group, *, p: float, scale: float, block: float = 0.0) -> Sequence[Tensor]:
    if c[2] is not None:  # dropped weights have no mean beside them
        y = forward(x, c, p=p, scale=scale, block=block)
        return *y, *jvp(x, c, y, tx, p=p, scale=scale, block=block)
    xs, c, block = _tiled(None if block else counted(x, c), [x, tx], c, block)

    def call(xs: Groups, marks: Group) -> Results:
        args = (*_wide(xs[0], xs[0]), *_given(c, marks), *_wide(xs[1], xs[0]))
        return DUAL(*args, *_numbers(c, p, scale, block))  # type: ignore[no-any-return]

    *found, leaked = call(xs, (None, None))
    if leaked and (x[3] is not None or _hides(c)):
        both, _, marks = _clean(xs, [])
        own, _, ours = _clean(xs[:1], [])  # of a tangent, what is not finite does not show in the value
        found = [*call([*own, both[1]], ours)[:2], *call(both, marks)[2:4]]
    return found


def backward(
    x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float, scale: float, block: float = 0.0
) -> list[Maybe]:
    if not block and _bare(x, c):
        wanted = needs[0] | needs[1] << 1 | needs[2] << 2
        *grads, leaked, whole = BARE_BACKWARD(x[0], x[1], x[2], c[0], c[1], *y, *dy, scale, wanted)
        if not (leaked and _hides(c)):
            return [*grads, None, None] if whole else _fit(grads, x, needs)
    found = None if block else counted(x, c, entries=True)
    if found is not None and found.choice.way == ENTRIES:
        tables = found.entries(by_column=True)
        return [*sparse_attention.backward(x[:3], (*tables, c[2]), y, dy, needs[:3], p=p, scale=scale), None, None]
    [x], c, block = _tiled(found, [x], c, block)

    def call(xs: Groups, ys: Groups, marks: Group) -> Results:
        args = (*_wide(xs[0], xs[0]), *_given(c, marks), *ys[0], *ys[1], *_numbers(c, p, scale, block), bits(needs))
        return BACKWARD(*args)  # type: ignore[no-any-return]

    return _fit(_run(call, c, [x], [y, dy]), x, needs)


def jvp(x: Group, c: Group, y: Group, tx: Group, *, p: float, scale: float, block: float = 0.0) -> Sequence[Tensor]:
    [x, tx], c, block = _tiled(None if block else counted(x, c), [x, tx], c, block)

    def call(xs: Groups, ys: Groups, marks: Group) -> Results:
        args = (*_wide(xs[0], xs[0]), *_given(c, marks), *ys[0], *_wide(xs[1], xs[0]), *_numbers(c, p, scale, block))
        return JVP(*args)  # type: ignore[no-any-return]

    return _run(call, c, [x, tx], [y])


def hvp(
    x: Group, c: Group, y: Group, ty: Group, dy: Group, tx: Group, tdy: Group, needs: Sequence[bool],
    *, p: float, scale: float, block: float = 0.0,
) -> list[Maybe]:  # fmt: skip
    [x, tx], c, block = _tiled(None if block else counted(x, c), [x, tx], c, block)

    def call(xs: Groups, ys: Groups, marks: Group) -> Results:
        y, ty, dy, tdy = ys
        args = (*_wide(xs[0], xs[0]), *_given(c, marks), *y, *ty, *dy, *_wide(xs[1], xs[0]), *tdy)
        return HVP(*args, *_numbers(c, p, scale, block), bits(needs))  # type: ignore[no-any-return]

    return _fit(_run(call, c, [x, tx], [y, ty, dy, tdy]), x, needs)


def jvp2(
    x: Group, c: Group, y: Group, uy: Group, wy: Group, ux: Group, wx: Group,
    *, p: float, scale: float, block: float = 0.0,
) -> Sequence[Tensor]:  # fmt: skip
    [x, ux, wx], c, block = _tiled(None if block else counted(x, c), [x, ux, wx], c, block)

    def call(xs: Groups, ys: Groups, marks: Group) -> Results:
        tangents = (*_wide(xs[1], xs[0]), *_wide(xs[2], xs[0]))
        args = (
            *_wide(xs[0], xs[0]),
            *_given(c, marks),
            *(t for y in ys for t in y),
            *tangents,
            *_numbers(c, p, scale, block),
        )
        return JVP2(*args)  # type: ignore[no-any-return]

    return _run(call, c, [x, ux, wx], [y, uy, wy])


def _tiled(found: Counted | None, xs: Groups, c: Group, block: float) -> tuple[Groups, Group, float]:
    """x and its tangents, and the constants, with a layout in place of a mask that takes block tiles."""
    if found is None:
        return xs, c, block
    return [[*x[:3], None, x[4]] for x in xs], (*c[:3], *found.layout()), found.choice.block


def _bare(x: Group, c: Group) -> bool:
    """Whether there is nothing but q, k, v and bounds."""
    return x[3] is None and x[4] is None and c[2] is None


def _hides(c: Group) -> bool:
    """Whether there are bounds, or a layout."""
    return any(t is not None for t in (*c[:2], *c[3:4]))


def _run(call: Callable[[Groups, Groups, Group], Results], c: Group, xs: Groups, ys: Groups) -> list[Tensor]:
    """The results of a call; of a clean one, where a mask is to hide what is not finite."""
    *found, leaked = call(xs, ys, (None, None))
    if leaked and (xs[0][3] is not None or _hides(c)):
        *found, _ = call(*_clean(xs, ys))
    return found


def _clean(xs: Groups, ys: Groups) -> tuple[Groups, Groups, Group]:
    """x and its tangents, y and its tangents and cotangents, with zeros for what is not finite; and the marks."""
    queries = [t for group in (*xs, *ys) if (t := group[0]) is not None]
    keys = [t for group in xs for t in group[1:3] if t is not None]
    spoilt, unsound = broken(*queries), broken(*keys)
    marks = [torch.where(bad, torch.nan, 0.0).to(wide(queries[0].dtype)).mT.contiguous() for bad in (spoilt, unsound)]
    xs = [[_zero(x[0], spoilt), _zero(x[1], unsound), _zero(x[2], unsound), *x[3:]] for x in xs]
    return xs, [[_zero(y[0], spoilt), *y[1:]] for y in ys], marks


def _zero(t: Maybe, where: Tensor) -> Maybe:
    return None if t is None else torch.where(where.unsqueeze(-1), 0, t)


def _wide(x: Group, like: Group) -> Group:
    """Slopes in the dtype of sums."""
    q, slopes = like[0], x[4]
    if slopes is None:
        return x
    assert q is not None
    return [*x[:4], slopes.to(wide(q.dtype))]


def _given(c: Group, marks: Group) -> Group:
    """Bounds, key, and of a layout its tiles and their bits, whose lists are not read here; then the marks."""
    return [*[*c, None, None, None][:6], *marks]


def _numbers(c: Group, p: float, scale: float, block: float) -> tuple[float, int, int]:
    return scale, 0 if c[2] is None else threshold(p), int(block)


def _fit(grads: Sequence[Tensor], x: Group, needs: Sequence[bool]) -> list[Maybe]:
    """Each gradient in the shape of its operand: kernels give one per example, and of slopes one per query."""
    found: list[Maybe] = [None] * len(x)
    for i, (grad, t, need) in enumerate(zip(grads, x, needs, strict=False)):
        if t is not None and need:
            grad = grad.sum(-1) if i == 4 else grad
            alike = grad.dim() == t.dim() and grad.numel() == t.numel()
            grad = grad if alike else grad.sum_to_size(t.shape)
            found[i] = grad if grad.dtype == t.dtype else grad.to(t.dtype)
    return found
