"""What the laws range over: every op, its cases as tensors, its backends, and when two results agree."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as tree

from xfn._core.case import Case
from xfn._core.dispatch import Call, module, reasons
from xfn._core.member import Member
from xfn._core.primitive import Lean, Primitive
from xfn.info import functions

from .device import gpu
from .transforms import PLAINLY, Point, Transform
from .watch import watch

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Subject:
    """One case of one op, on one backend, in one dtype."""

    op: str
    case: Case
    backend: str | None
    dtype: torch.dtype = torch.float64

    def __str__(self) -> str:
        narrow = "" if self.dtype == torch.float64 else f"-{str(self.dtype).removeprefix('torch.')}"
        return f"{self.op}-{self.case}-{self.backend or 'chosen'}{narrow}"

    __repr__ = __str__

    def __call__(self, *x: Tensor) -> Tensors:
        """The outputs, with the −∞ of rows that see nothing taken for zero, so that they can be summed."""
        return tuple(torch.where(y == -torch.inf, 0, y) for y in self.case.call(*x, backend=self.backend))

    @property
    def oracle(self) -> "Subject":
        return Subject(self.op, self.case, "reference", self.dtype)

    def draw(self, seed: int = 0, examples: int | None = None) -> Tensors:
        """Its tensors; with ``examples``, stacked on a leading axis."""
        generator = torch.Generator().manual_seed(seed)
        lead = () if examples is None else (examples,)
        shapes = [(*lead, *self.case.shape(name)) for name in self.case.shapes]
        return tuple(torch.randn(s, generator=generator, dtype=self.dtype) for s in shapes)

    @property
    def point(self) -> Point:
        """Where laws of transforms look at it, whatever its backend."""
        draw = self.draw
        return Point(draw(0), draw(1), draw(2), draw(3, examples=3), draw(4, examples=3))


def subjects(
    keep: Callable[[Case], bool] = lambda case: True,
    backends: Sequence[str | None] = (None,),
    dtypes: Sequence[torch.dtype] = (torch.float64,),
) -> Callable[[Any], Any]:
    """Parametrise a law over the cases that are not for benchmarks; it runs on a GPU too."""
    found = every(keep, backends, dtypes)
    return lambda law: gpu(pytest.mark.parametrize("subject", found, ids=str)(law))


def every(keep: Callable[[Case], bool], backends: Sequence[str | None], dtypes: Sequence[torch.dtype]) -> list[Subject]:
    """Of the backends, ``None`` is the automatic choice, ``"complete"`` each one that has a whole family, and
    ``"each"`` the choice, if it is none of those, and those."""
    found: list[Subject] = []
    for op, primitive, cases in functions():
        for case, dtype in product(cases, dtypes):
            whole = complete(primitive, dtype)
            same = primitive is not None and whole[:1] == running(primitive, dtype)[:1] != []
            each = whole if same else [None, *whole]
            named: dict[str | None, Sequence[str | None]] = {None: [None], "complete": whole, "each": each}
            if keep(case) and "long" not in case.tags:
                found += [Subject(op, case, backend, dtype) for name in backends for backend in named[name]]
    return found


@cache
def running(primitive: Primitive, dtype: torch.dtype) -> list[str]:
    """The backends that run what the laws draw: tensors of a dtype, where the laws run."""
    case = next(cases[0] for _, found, cases in functions() if found is primitive)
    flat = given(primitive, lambda: case.call(*Subject(primitive.name, case, None, dtype).draw()))
    member = primitive.forward
    options = dict(zip(primitive.options, flat[member.numbers], strict=False))
    call = Call(primitive.name, "forward", dict(zip(member.names, flat, strict=False)), options)
    return [b for b in primitive.backends if not reasons(b, call)]


def given(primitive: Primitive, call: Callable[[], Any]) -> tuple[Any, ...]:
    """What a call gives the primitive, the first time if it is asked more than once."""
    return next(args for name, args in watch(call).calls if name == primitive.forward.name)


def complete(primitive: Primitive | None, dtype: torch.dtype = torch.float64) -> list[str]:
    """Those of them that implement every member of the family; of a lean one the first, for all that transforms ask of
    a backend there is its value and its gradient."""
    if primitive is None:
        return []
    members = [member.member for member in primitive.family]
    found = [b for b in running(primitive, dtype) if all(hasattr(module(b, primitive.name), m) for m in members)]
    return found[:1] if isinstance(primitive, Lean) else found


def implemented(primitive: Primitive, backend: str) -> list[Member]:
    """The family, and dual, where the backend has it."""
    try:
        dual = [primitive.dual] if primitive.dual and hasattr(module(backend, primitive.name), "dual") else []
    except ImportError:
        dual = []
    return [*primitive.family, *dual]


def tiny(case: Case) -> bool:
    return "tiny" in case.tags


def filled(case: Case) -> bool:
    return "empty" not in case.tags


def error(got: Any, want: Any) -> float:
    """The largest difference, relative to the largest number wanted, or to 1; infinite where one is not finite."""
    pairs = list(zip(tree.tree_leaves(got), tree.tree_leaves(want), strict=True))
    worst = 0.0
    for a, b in pairs:
        assert a.shape == b.shape, f"shape {list(a.shape)} is not {list(b.shape)}"
        if a.numel():
            scale = max(1.0, b.double().abs().max().item())
            worst = max(worst, (a.double() - b.double()).abs().nan_to_num(nan=torch.inf).max().item() / scale)
    return worst


@lru_cache(maxsize=64)
def wanted(f: Transform, oracle: Subject, exact: bool = False) -> Any:
    """What a transform makes of the reference, kept for the next backend: a case's come one behind another."""
    return f(oracle, oracle.point.double() if exact else oracle.point)


def follows(f: Transform, subject: Subject) -> None:
    """``f`` of a subject agrees with the same of the reference, made in the plain way if there is one: to the last
    digits in float64, else within three times the reference's own error in its dtype and thirty-two roundings."""
    plain = PLAINLY.get(f, f)
    got, same = f(subject, subject.point), wanted(plain, subject.oracle)
    if subject.dtype == torch.float64:
        agree(got, same)
        return
    exact = wanted(plain, subject.oracle, exact=True)
    allowed = 3 * error(same, exact) + 32 * torch.finfo(subject.dtype).eps
    assert (found := error(got, exact)) <= allowed, f"relative error {found:.2e} exceeds {allowed:.2e}"


def agree(got: Any, want: Any, tolerance: float = 1e-10) -> None:
    """Two trees of tensors have the same shapes and, in float64, the same numbers."""
    found = error(got, want)
    assert found <= tolerance, f"relative error {found:.2e} exceeds {tolerance:.0e}"
