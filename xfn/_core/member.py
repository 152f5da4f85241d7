"""One op of a primitive's family: its schema, and what follows from how its arguments group.

A member's flat arguments are groups of tensors (the operands x, the constants c, outputs y, and tangents or
cotangents of x and y), then the primitive's options, the backend, and, when it returns gradients, a bit for
each one that is needed. From the letters of the operands come the fake kernel and the vmap rule; from the
groups, the readable form of the rules and of the kernels.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate, chain, pairwise
from typing import Any

import torch
from torch import Tensor

from .composite import pull
from .definition import bits
from .dispatch import Call, at_once, choose, whole
from .kernel import Args, Grads, Outs, RawOp, Short
from .kinds import wide
from .levels import plain, records
from .shapes import Signature, batch_of

Groups = Sequence[Sequence[Any]]
Options = tuple[Any, ...]
Given = tuple[str, ...]
Vjp = Callable[[Groups, Outs, Grads, Sequence[Sequence[bool]], Options], Sequence[Grads]]
Jvp = Callable[[Groups, Outs, Groups, Sequence[bool], Options], Grads]

# group: which operands it stands for, the prefix of its arguments' names, whether each may be absent
GROUPS = {
    "x": ("x", "", False), "c": ("c", "", False), "y": ("y", "", False),
    "tx": ("x", "t_", True), "ux": ("x", "u_", True), "wx": ("x", "w_", True),
    "ty": ("y", "t_", False), "uy": ("y", "u_", False), "wy": ("y", "w_", False),
    "dy": ("y", "d_", True), "tdy": ("y", "td_", True),
}  # fmt: skip


def halves(both: Sequence[Any]) -> tuple[Any, Any]:
    """Outputs, and their tangents or what else belongs to each."""
    count = len(both) // 2
    return both[:count], both[count:]


class Member:
    """A raw op ``<primitive>_<member>``; call it with groups, options and, for gradients, which are needed.

    It is differentiated by its rules, ``vjp`` and ``jvp``; where one is missing, through its ``composite``.
    """

    def __init__(
        self,
        primitive: str,
        member: str,
        signature: Signature,
        options: Sequence[str],
        backends: Sequence[str],
        groups: str,
        *,
        inward: bool = False,
        rules: tuple[Vjp, Jvp | None] | None = None,
        composite: Callable[..., Any] | None = None,
        adjoint: "Member | None" = None,
        dual: "Member | None" = None,
        apart: Callable[..., Outs] | None = None,
        unread: Callable[..., Sequence[int]] | None = None,
    ) -> None:
        """``dual``: the op that gives these outputs and their tangents; ``apart``: how such an op is done by others;
        ``unread``: operands that no gradient reads, from which are needed and the options."""
        self.primitive, self.member, self.name = primitive, member, f"{primitive}_{member}"
        self.groups = groups.split()
        self.signature, self.backends, self.inward = signature, tuple(backends), inward
        self.options = tuple(o.split()[-1] for o in options)
        self._rules, self._composite, self.adjoint, self._dual, self._apart = rules, composite, adjoint, dual, apart
        self.unread, self.outputs = unread, [*signature.outputs] * (2 if apart else 1)
        rows = {"x": signature.operands, "c": signature.constants, "y": signature.outputs}
        chosen = [(rows[of], prefix, absent) for of, prefix, absent in (GROUPS[g] for g in self.groups)]
        ends = list(accumulate((len(row) for row, _, _ in chosen), initial=0))
        self.slices = [slice(start, end) for start, end in pairwise(ends)]
        self.operands: list[Any] = [o for row, _, _ in chosen for o in row]
        self.names = [f"{prefix}{o.name}" for row, prefix, _ in chosen for o in row]
        self.inputs = [o.name for o in signature.inputs]
        self.numbers = slice(len(self.operands), len(self.operands) + len(self.options) + 1)
        optional = [absent or o.optional for row, _, absent in chosen for o in row]
        tensors = [f"Tensor{'?' * maybe} {name}" for name, maybe in zip(self.names, optional, strict=True)]
        numbers = [*(o if " " in o else f"float {o}" for o in options), "str? backend", *["int need"] * inward]
        returns = ["Tensor"] * len(signature.operands if inward else self.outputs)
        self.schema = f"({', '.join(tensors + numbers)}) -> ({', '.join(returns)})"
        self.certain = cache(self._certain)
        self.op = RawOp(self)

    def __call__(self, *groups: Sequence[Any], options: Options, needs: Sequence[bool] = ()) -> Grads:
        if self.inward and not any(needs):
            return [None] * len(needs)
        flat = self.flat(groups, options, needs)
        if plain(flat) and not flat[0].is_meta:
            recorded = records(flat)
            if self.adjoint or not recorded:
                numbers = dict(zip(self.options, options, strict=False))
                return self.short(groups, numbers, options[-1], needs, self.given(flat), recorded)
        outs = self.op(*flat)
        return [g if need else None for g, need in zip(outs, needs, strict=True)] if self.inward else outs

    def short(
        self, groups: Groups, options: Mapping[str, float], backend: str | None, needs: Sequence[bool], given: Given,
        recorded: bool,
    ) -> Grads:  # fmt: skip
        """A call that is ``plain``, past the dispatcher: straight to the kernel, or to the Function around it."""
        kernel, adjoint = self.certain(backend, groups[0][0].device, given)
        if kernel is None:
            kernel = self.chosen(self.flat(groups, (*options.values(), backend), needs))
        if self.inward:
            return kernel(*groups, needs, **options)  # type: ignore[no-any-return]
        if recorded:
            return Short(self, kernel, adjoint, options, backend, self.unread).record(*groups)
        return tuple(kernel(*groups, **options))

    def _certain(self, backend: str | None, device: torch.device, given: Given) -> tuple[Any, Any]:
        """This member's kernel and its adjoint's, as far as it is certain which ones will run."""
        kernel, adjoint = (
            m and at_once(m.backends, m.primitive, m.member, backend, device, given) for m in (self, self.adjoint)
        )
        return kernel, adjoint

    def flat(self, groups: Groups, options: Options, needs: Sequence[bool]) -> Args:
        """Groups, options and the backend, as the op takes them."""
        last = (bits(needs),) if self.inward else ()
        return (*chain.from_iterable(groups), *options, *last)

    def split(self, flat: Args) -> tuple[list[Any], Options]:
        """Flat arguments as groups, then the options and the backend."""
        return [flat[part] for part in self.slices], tuple(flat[self.numbers])

    def needed(self, flat: Args) -> list[bool]:
        """Which gradients are wanted; empty for an op that returns none."""
        return [bool(flat[-1] >> i & 1) for i in range(self.slices[0].stop)] if self.inward else []

    def run(self, function: Callable[..., Any], flat: Args) -> Grads:
        """A kernel, or the composite, on flat arguments; a gradient that is not needed is None."""
        groups, numbers = self.split(flat)
        options = dict(zip(self.options, numbers, strict=False))
        if not self.inward:
            return function(*groups, **options)  # type: ignore[no-any-return]
        return function(*groups, self.needed(flat), **options)  # type: ignore[no-any-return]

    def given(self, flat: Args) -> Given:
        """Which operands and constants are present."""
        return tuple([name for name, t in zip(self.inputs, flat, strict=False) if t is not None])

    def chosen(self, flat: Args) -> Callable[..., Any]:
        """The kernel for a call that must be looked at."""
        *numbers, backend = flat[self.numbers]
        tensors, options = dict(zip(self.names, flat, strict=False)), dict(zip(self.options, numbers, strict=True))
        call = Call(self.primitive, self.member, tensors, options, self.needed(flat))
        if self._apart is None:
            return choose(self.backends, call, backend)  # type: ignore[no-any-return]
        found = whole(self.backends, call, "forward", backend)
        return found or (lambda *groups, **options: self._apart("compute", *groups, (*options.values(), backend)))

    # What the dispatcher asks for: `kernel.Definition`.

    def compute(self, *flat: Any) -> Grads:
        return self.run(self.chosen(flat), flat)

    def fake(self, *flat: Any) -> Outs:
        first: Tensor = flat[0]
        if self.inward:
            pairs = zip(flat, self.needed(flat), strict=False)
            return tuple(x.new_empty(x.shape) if need else first.new_empty(0) for x, need in pairs)
        tensors = flat[: len(self.operands)]
        sizes, batch = self.signature.sizes(tensors), batch_of(self.operands, tensors)
        return tuple(
            first.new_empty((*batch, *(sizes[d] for d in o.dims)), dtype=wide(first.dtype) if o.wide else first.dtype)
            for o in self.outputs
        )

    def vmap(self, size: int, in_dims: Sequence[int | None], *flat: Any) -> tuple[Outs, tuple[int | None, ...]]:
        """The mapped dim becomes the first batch dim; every mapped operand gets ones behind it up to the common
        batch rank. Gradients have their operands' shapes, so an operand that is not mapped but wants a gradient
        per example is expanded, with stride 0."""
        needs = self.needed(flat)
        lifted, depth = list(flat), 0
        for i, (tensor, dim) in enumerate(zip(flat, in_dims, strict=True)):
            if dim is not None:
                lifted[i] = tensor.movedim(dim, 0)
            elif any(needs[i : i + 1]):
                lifted[i] = tensor.expand(size, *tensor.shape)
        for tensor, lift, operand in zip(flat, lifted, self.operands, strict=False):
            if tensor is not None:
                depth = max(depth, lift.dim() - operand.rank - (lift is not tensor))
        shapes = [t.shape for t, need in zip(lifted, needs, strict=False) if need]
        for i, operand in enumerate(self.operands):
            if lifted[i] is not flat[i]:
                ones = depth - (lifted[i].dim() - operand.rank - 1)
                lifted[i] = lifted[i][(slice(None), *[None] * ones)]
        if self._apart and all(d is None for d in in_dims[: self.slices[1].stop]):  # one value, many tangents
            groups, options = self.split(lifted)
            return self._apart("op", *groups, options), tuple(dim for dim in (None, 0) for _ in self.signature.outputs)
        outs = self.op(*lifted)
        if not self.inward:
            return outs, (0,) * len(outs)
        shape = iter(shapes)
        grads = tuple(g.reshape(next(shape)) if need else g for g, need in zip(outs, needs, strict=True))
        return grads, tuple(0 if need else None for need in needs)

    def vjp(self, args: Args, outs: Outs, cotangents: Grads, needs: Sequence[bool]) -> Grads:
        if self.inward:
            cotangents = [u if need else None for u, need in zip(cotangents, self.needed(args), strict=True)]
        if self._rules is None:
            return self._composite_vjp(args, cotangents, needs)
        groups, options = self.split(args)
        rows = self._rules[0](groups, outs, cotangents, self.split(needs)[0], options)
        grads = [g for row in rows for g in row]
        return grads + [None] * (len(args) - len(grads))

    def jvp(self, args: Args, outs: Outs, tangents: Grads) -> Grads:
        assert self._rules is not None
        assert self._rules[1] is not None
        groups, options = self.split(args)
        return self._rules[1](groups, outs, self.split(tangents)[0], self.needed(args), options)

    def both(self, args: Args, tangents: Grads) -> tuple[Outs, Grads] | None:
        if self._dual is None:
            return None
        groups, options = self.split(args)
        y, ty = halves(self._dual(*groups, self.split(tangents)[0][0], options=options))
        return y, ty

    def composite(self, *flat: Any) -> Grads | None:
        return None if self._composite is None else self.run(self._composite, flat)

    def _composite_vjp(self, args: Args, cotangents: Grads, needs: Sequence[bool]) -> Grads:
        given = [(i, u) for i, u in enumerate(cotangents) if u is not None]
        wanted = [i for i, need in enumerate(needs) if need]

        def function(*values: Tensor) -> Outs:
            flat = list(args)
            for i, value in zip(wanted, values, strict=True):
                flat[i] = value
            outs = self.run(self._composite, flat)  # type: ignore[arg-type]
            return tuple(outs[i] for i, _ in given)  # type: ignore[misc]

        found = pull(function, tuple(args[i] for i in wanted), tuple(u for _, u in given))
        grads = dict(zip(wanted, found, strict=True))
        return [grads.get(i) for i in range(len(args))]
