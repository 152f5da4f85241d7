"""The family of an op from its reference alone, in plain torch.

It has a kernel module's functions, takes any nesting of transforms, and keeps in memory what the reference
keeps. Third derivatives run it, and every kernel is tested against it. Only reverse mode is used: forward
mode does not nest where it was entered by hand.
"""

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor

from .functions import backwards
from .kernel import Grads, Outs, variable
from .levels import levels
from .shapes import Operand, Signature, batch_of

Function = Callable[..., Outs]
Group = Sequence[Tensor | None]


def pull(f: Function, at: Outs, cotangents: Outs) -> Outs:
    """Jᵀ cotangents, by the gradient with respect to zeros that are added, so that duals and graphs on ``at`` stay."""
    if levels()[-1:] == ["Vmap"]:  # where nothing can be a leaf; one level further in it can
        return tuple(backwards(f, at, [True] * len(at), cotangents)[1])  # type: ignore[arg-type]
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        zeros = [variable(torch.zeros_like(t)) for t in at]
        outs = f(*(t + zero for t, zero in zip(at, zeros, strict=True)))
        pairs = [(out, u) for out, u in zip(outs, cotangents, strict=True) if out.requires_grad]  # a constant has none
        if not pairs:
            return tuple(torch.zeros_like(t) for t in at)
        outs, cotangents = zip(*pairs, strict=True)
        return torch.autograd.grad(outs, zeros, cotangents, create_graph=again, materialize_grads=True)


def push(f: Function, at: Outs, tangents: Outs) -> Outs:
    """J tangents: Jᵀ is linear in its cotangent, so pulling back through it transposes it again."""
    zeros = tuple(torch.zeros_like(out) for out in f(*at))
    return pull(lambda *cotangents: pull(f, at, cotangents), zeros, tangents)


class Composite:
    """``forward dual backward jvp hvp jvp2`` of a reference, on the groups that ``primitive.py`` lists."""

    def __init__(self, signature: Signature, reference: Function) -> None:
        self.signature, self.reference = signature, reference

    def forward(self, x: Group, c: Group, **options: float) -> Outs:
        return self.reference(*x, *c, **options)

    def backward(self, x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], **options: float) -> Grads:
        at = _Point(self, x, c, y, options, outputs=[dy])
        return at.grads(pull(at.f, at.x, at.outputs(dy)), needs)

    def dual(self, x: Group, c: Group, tx: Group, **options: float) -> Outs:
        y = self.forward(x, c, **options)
        return *y, *self.jvp(x, c, y, tx, **options)

    def jvp(self, x: Group, c: Group, y: Group, tx: Group, **options: float) -> Outs:
        at = _Point(self, x, c, y, options, operands=[tx])
        return push(at.f, at.x, at.operands(tx))

    def hvp(
        self, x: Group, c: Group, y: Group, ty: Group, dy: Group, tx: Group, tdy: Group, needs: Sequence[bool],
        **options: float,
    ) -> Grads:  # fmt: skip
        at = _Point(self, x, c, y, options, operands=[tx], outputs=[dy, tdy])
        along = at.operands(tx)
        bent = pull(lambda *xs: push(at.f, xs, along), at.x, at.outputs(dy))
        turned = pull(at.f, at.x, at.outputs(tdy))
        return at.grads([a + b for a, b in zip(bent, turned, strict=True)], needs)

    def jvp2(self, x: Group, c: Group, y: Group, uy: Group, wy: Group, ux: Group, wx: Group, **options: float) -> Outs:
        at = _Point(self, x, c, y, options, operands=[ux, wx])
        u, w = at.operands(ux), at.operands(wx)
        return push(lambda *xs: push(at.f, xs, u), at.x, w)


class _Point:
    """Where a derivative is taken: f of the operands that can be differentiated, and those, all expanded to the
    batch that the call's tensors share, so that tangents and cotangents of any batch fit."""

    def __init__(
        self,
        family: Composite,
        x: Group,
        c: Group,
        y: Group,
        options: dict[str, float],
        operands: Sequence[Group] = (),
        outputs: Sequence[Group] = (),
    ) -> None:
        signature = family.signature
        rows = [(signature.operands, g) for g in (x, *operands)] + [(signature.outputs, g) for g in (y, *outputs)]
        self.batch = batch_of(list(chain(*(r for r, _ in rows))), list(chain(*(g for _, g in rows))))
        self.signature, self.given, self.y = signature, x, y
        self.live = [i for i, t in enumerate(x) if t is not None and t.is_floating_point()]
        self.x = self.operands(x)

        def f(*values: Tensor) -> Outs:
            full = list(x)
            for i, value in zip(self.live, values, strict=True):
                full[i] = value
            return family.reference(*full, *c, **options)

        self.f = f

    def operands(self, group: Group) -> Outs:
        """Operands or their tangents, absent ones as zeros."""
        rows = (self.signature.operands, group, self.given)
        operands, tensors, like = ([row[i] for i in self.live] for row in rows)
        return self._expand(operands, tensors, like)  # type: ignore[arg-type]

    def outputs(self, group: Group) -> Outs:
        """Cotangents, absent ones as zeros."""
        return self._expand(self.signature.outputs, group, self.y)

    def grads(self, values: Sequence[Tensor], needs: Sequence[bool]) -> Grads:
        """Gradients, summed to the shapes of their operands."""
        found = dict(zip(self.live, values, strict=True))
        return [
            found[i].sum_to_size(t.shape) if need and t is not None else None
            for i, (t, need) in enumerate(zip(self.given, needs, strict=True))
        ]

    def _expand(self, row: Sequence[Operand], group: Group, like: Group) -> Outs:
        filled = [torch.zeros_like(b) if a is None and b is not None else a for a, b in zip(group, like, strict=True)]
        return tuple(
            t.expand(*self.batch, *t.shape[t.dim() - o.rank :])
            for o, t in zip(row, filled, strict=True)
            if t is not None
        )
