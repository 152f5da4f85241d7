"""Primitives, and the one differentiation rule.

A primitive is a function y = f(x; c) of differentiated operands x and constants c, with a reference in plain
torch. Its family of raw ops is closed under differentiation to second order; with J the Jacobian of f at x,

    forward   x c                    y
    dual      x c tx                 y and J tx, in one pass where a kernel has it
    backward  x c y dy               Jᵀ dy
    jvp       x c y tx               J tx                              the tangent of y along tx
    hvp       x c y ty dy tx tdy     d(Jᵀ dy) along (tx, tdy)          with ty = J tx
    jvp2      x c y uy wy ux wx      d²f along ux and wx               with uy = J ux, wy = J wx

and because second derivatives are symmetric, these are enough:

    forward   vjp: backward                        jvp: dual, or jvp
    dual      vjp: hvp, and backward               jvp: jvp, and that of jvp
    backward  vjp: hvp along u, and jvp along u    jvp: hvp
    jvp       vjp: hvp, and backward               jvp: jvp2, plus jvp along the tangent's tangent
    hvp jvp2                                       the reference, differentiated by torch

y and its tangents are passed as caches: every rule is the total derivative with respect to x, so nothing is
differentiated through them. The third order goes to the reference lazily, when it is asked for: functorch
differentiates with create_graph always, and an op that decomposed eagerly would cost O(M N) already for
grad of grad.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from .composite import Composite
from .dispatch import OVERRIDE, swift
from .kernel import Grads, Outs
from .levels import TENSORS, overt, records
from .member import Groups, Member, Options, halves
from .shapes import Signature, whole

Needs = Sequence[Sequence[bool]]


class Primitive:
    """A function with kernels; ``bind`` calls it, ``reference`` defines it, ``family`` holds its raw ops.

    Options are floats; one of another type is written with it, as ``"str activation"``. ``dual`` is beside the family,
    for a backend may lack it: then forward and jvp run one after the other. ``unread(needs, **options)``: the
    operands whose numbers no derivative depends on, if those that are needed are all: they are not kept for it.
    """

    dual: Member | None = None

    def __init__(
        self,
        name: str,
        signature: Signature,
        reference: Callable[..., Outs],
        *,
        options: Sequence[str] = (),
        backends: Sequence[str],
        unread: Callable[..., Sequence[int]] | None = None,
    ) -> None:
        self.name, self.signature, self.reference = name, signature, reference
        self.options, self.backends = tuple(o.split()[-1] for o in options), tuple(backends)
        self.required = tuple(o.name for o in signature.operands if not o.optional)
        self.unread = unread
        self.absent = (None,) * (len(signature.operands) - len(self.required))
        self.constants = (None,) * len(signature.constants)

        self.composite = Composite(signature, reference)
        self.family = self._family(partial(Member, name, signature=signature, options=options, backends=backends))

    def _family(self, member: Callable[..., Member]) -> tuple[Member, ...]:
        self.backward = member(
            "backward", groups="x c y dy", inward=True, rules=(self._backward_vjp, self._backward_jvp)
        )
        self.dual = member("dual", groups="x c tx", rules=(self._dual_vjp, self._dual_jvp), apart=self._apart)
        self.forward = member(
            "forward", groups="x c", rules=(self._forward_vjp, self._forward_jvp), adjoint=self.backward, dual=self.dual
        )
        self.jvp = member("jvp", groups="x c y tx", rules=(self._jvp_vjp, self._jvp_jvp))
        self.hvp = member("hvp", groups="x c y ty dy tx tdy", inward=True, composite=self.composite.hvp)
        self.jvp2 = member("jvp2", groups="x c y uy wy ux wx", composite=self.composite.jvp2)
        return self.forward, self.backward, self.jvp, self.hvp, self.jvp2

    def __repr__(self) -> str:
        return f"Primitive({self.name!r}, backends={self.backends})"

    def bind(self, *operands: Tensor | None, backend: str | None = None, **options: Any) -> Outs:
        """The outputs of one call; operands and options as the signature orders and names them."""
        backend = backend or OVERRIDE
        if backend == "reference":
            return self.reference(*operands, **options)
        if backend is not None and backend not in self.backends:
            raise ValueError(f"{self.name} has no backend {backend!r}; it has {['reference', *self.backends]}")
        count = len(self.signature.operands)
        numbers = (*(options[o] for o in self.options), backend)
        return self.forward(operands[:count], operands[count:], options=numbers)  # type: ignore[return-value]

    @cached_property
    def swift(self) -> Callable[..., Any] | None:
        """What the first backend's kernels have for the plainest calls."""
        return swift(self.backends[0], self.name)

    def swiftly(self, x: Tensor, *rest: Tensor | float | str | None) -> Tensor | None:
        """The output of a call that ``swift`` takes; what it is not for is looked at by ``bind``."""
        if type(x) not in TENSORS or not overt((x, *rest)) or (swift := self.swift) is None:
            return None
        return swift(x, *rest)  # type: ignore[no-any-return]

    def direct(self, x: Sequence[Tensor], c: Grads | None = None, **options: float) -> Outs:
        """As ``bind``, of the operands that are required and the constants, if any, where the call is ``plain``."""
        given, groups = self.required, ((*x, *self.absent), self.constants if c is None else c)
        if OVERRIDE is not None:
            return self.bind(*groups[0], *groups[1], backend=None, **options)
        if c is not None:
            given += tuple([o.name for o, t in zip(self.signature.constants, c, strict=True) if t is not None])
        return self.forward.short(groups, options, None, (), given, records(x))  # type: ignore[return-value]

    # The table above. `needs` of a vjp: which inputs want a gradient, in groups; of a jvp: which gradients the op
    # itself returns.

    def _forward_vjp(self, at: Groups, y: Outs, dy: Grads, needs: Needs, options: Options) -> Sequence[Grads]:
        x, c = at
        return [self.backward(x, c, y, dy, options=options, needs=needs[0])]

    def _forward_jvp(self, at: Groups, y: Outs, along: Groups, _: Sequence[bool], options: Options) -> Grads:
        x, c = at
        return self.jvp(x, c, y, along[0], options=options)

    def _apart(self, how: str, x: Grads, c: Grads, tx: Grads, options: Options) -> Outs:
        """What dual gives, one after the other: by their kernels, ``compute``, or by their ops, ``op``."""
        y = getattr(self.forward, how)(*x, *c, *options)
        return *y, *getattr(self.jvp, how)(*x, *c, *y, *tx, *options)

    def _dual_vjp(self, at: Groups, both: Outs, dboth: Grads, needs: Needs, options: Options) -> Sequence[Grads]:
        (x, c, tx), (y, ty), (dy, dty) = at, halves(both), halves(dboth)
        if all(t is None for t in dty):
            return [self.backward(x, c, y, dy, options=options, needs=needs[0])]
        grads = self.hvp(x, c, y, ty, dty, tx, dy, options=options, needs=needs[0])
        return [grads, [None] * len(c), self.backward(_wide(x, tx), c, y, dty, options=options, needs=needs[2])]

    def _dual_jvp(self, at: Groups, both: Outs, along: Groups, _: Sequence[bool], options: Options) -> Grads:
        (x, c, tx), (y, ty), (wx, wc, wtx) = at, halves(both), along
        moves = any(t is not None for t in wx)
        wy = self.jvp(x, c, y, wx, options=options) if moves else [None] * len(y)
        return *wy, *self._jvp_jvp((x, c, y, tx), ty, (wx, wc, wy, wtx), (), options)

    def _backward_vjp(self, at: Groups, _: Outs, u: Grads, needs: Needs, options: Options) -> Sequence[Grads]:
        x, c, y, dy = at
        if all(t is None for t in u):
            return []
        ty = self.jvp(x, c, y, u, options=options)
        still = [None] * len(y)
        grads = self.hvp(x, c, y, ty, dy, u, still, options=options, needs=needs[0])
        return [grads, [None] * len(c), still, [t if need else None for t, need in zip(ty, needs[3], strict=True)]]

    def _backward_jvp(self, at: Groups, _: Outs, along: Groups, needs: Sequence[bool], options: Options) -> Grads:
        x, c, y, dy = at
        tx, _c, ty, tdy = along
        if all(t is None for t in tx):
            return self.backward(x, c, y, tdy, options=options, needs=needs)
        return self.hvp(x, c, y, self._tangent(at, tx, ty, options), dy, tx, tdy, options=options, needs=needs)

    def _jvp_vjp(self, at: Groups, ty: Outs, dy: Grads, needs: Needs, options: Options) -> Sequence[Grads]:
        x, c, y, tx = at
        still = [None] * len(y)
        grads = self.hvp(x, c, y, ty, dy, tx, still, options=options, needs=needs[0])
        return [grads, [None] * len(c), still, self.backward(_wide(x, tx), c, y, dy, options=options, needs=needs[3])]

    def _jvp_jvp(self, at: Groups, ty: Outs, along: Groups, _: Sequence[bool], options: Options) -> Grads:
        x, c, y, tx = at
        wx, _c, wy, ttx = along
        parts: list[Grads] = []
        if any(t is not None for t in wx):
            parts.append(self.jvp2(x, c, y, ty, self._tangent(at, wx, wy, options), tx, wx, options=options))
        if any(t is not None for t in ttx):
            parts.append(self.jvp(x, c, y, ttx, options=options))
        return [sum(terms[1:], terms[0]) for terms in zip(*parts, strict=True)]

    def _tangent(self, at: Groups, tx: Grads, ty: Grads, options: Options) -> Grads:
        """The tangent of y along tx: as it came with y, or computed."""
        x, c, y = at[:3]
        return ty if all(t is not None for t in ty) else self.jvp(x, c, y, tx, options=options)


def _wide(x: Grads, tx: Grads) -> Grads:
    """Operands with the batch of their tangents, too: what is mapped over tangents alone has a gradient for each."""
    pairs = zip(x, tx, strict=True)
    return [t if t is None or d is None or t.shape == d.shape else whole(t, d.shape) for t, d in pairs]


class Lean(Primitive):
    """A primitive whose reference keeps nothing larger than its operands.

    Its kernels are for the value and the gradient; every further derivative is the reference's, at once.
    """

    def _family(self, member: Callable[..., Member]) -> tuple[Member, ...]:
        self.backward = member("backward", groups="x c y dy", inward=True, composite=self.composite.backward)
        rules = (self._forward_vjp, None)
        self.forward = member(
            "forward", groups="x c", rules=rules, composite=self.composite.forward, adjoint=self.backward,
            unread=self.unread,
        )  # fmt: skip
        return self.forward, self.backward
