"""Every kernel × every member of the family × every case × every dtype, against the reference's own derivatives."""

from collections.abc import Container, Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from xfn._core.case import Case
from xfn._core.dispatch import Call, module, reasons
from xfn._core.errors import Unsupported
from xfn._core.member import Member
from xfn._core.primitive import Primitive
from xfn.info import primitives

from ..cases import agree, error, given, implemented, running
from ..device import gpu

Group = list[Tensor | None]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
KERNELS = [
    pytest.param(primitive, case, member, backend, id=f"{primitive.name}-{case}-{member.member}-{backend}")
    for primitive, cases in primitives()
    for here in [running(primitive, torch.float32)]
    for case in cases
    if "long" not in case.tags
    for backend in primitive.backends
    for member in implemented(primitive, backend)
    if (backend in here and hasattr(module(backend, primitive.name), member.member)) or case is cases[0]
]
"""Of backends that do not run here, or lack a member, which refuse whatever the case, only the first."""


class Arguments:
    """What the members of a family may be called with, at a case: groups by name, drawn once."""

    def __init__(self, primitive: Primitive, case: Case, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        draw = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        tensors = [draw(case.shape(name)) for name in case.shapes]
        flat = given(primitive, lambda: case.call(*tensors))
        (x, c), (*numbers, _) = primitive.forward.split(flat)
        self.primitive, self.options = primitive, dict(zip(primitive.options, numbers, strict=True))
        y: Group = list(primitive.composite.forward(x, c, **self.options))
        tx, wx = ([None if t is None or t.dtype == torch.bool else draw(t.shape) for t in x] for _ in range(2))
        dy, tdy = ([t if t is None else draw(t.shape).to(t.dtype) for t in y] for _ in range(2))
        self.needs = tuple(t is not None and t.is_floating_point() for t in x)
        self.groups: dict[str, Group] = {"x": x, "c": c, "y": y, "tx": tx, "ux": tx, "wx": wx, "dy": dy, "tdy": tdy}

    def of(self, member: Member, absent: Container[tuple[str, int]] = ()) -> list[Group]:
        """The member's groups, less what is absent; the tangents of y are those along what is left."""
        left = {g: [None if (g, i) in absent else t for i, t in enumerate(row)] for g, row in self.groups.items()}
        jvp = self.primitive.composite.jvp
        for moved, along in (("ty", "tx"), ("uy", "ux"), ("wy", "wx")):
            if moved in member.groups:
                left[moved] = list(jvp(left["x"], left["c"], left["y"], left[along], **self.options))
        return [left[g] for g in member.groups]

    def against(self, member: Member, groups: Sequence[Group], backend: str) -> list[str]:
        """The reasons of a backend not to run the member on these groups."""
        tensors = dict(zip(member.names, (t for g in groups for t in g), strict=True))
        return reasons(backend, Call(self.primitive.name, member.member, tensors, self.options))

    def run(self, function: Any, member: Member, groups: Sequence[Group], needs: Sequence[bool]) -> list[Tensor]:
        found = function(*groups, needs, **self.options) if member.inward else function(*groups, **self.options)
        assert not member.inward or [t is not None for t in found] == list(needs)
        return [torch.where(t == -torch.inf, 0, t) for t in found if t is not None]


# What the reference is asked, once for all backends: a case's come one behind another.

Absent = frozenset[tuple[str, int]]
arguments = lru_cache(maxsize=len(DTYPES))(Arguments)


@lru_cache(maxsize=256)
def groups_of(at: Arguments, member: Member, absent: Absent) -> list[Group]:
    return at.of(member, absent)


@lru_cache(maxsize=256)
def wanted(at: Arguments, member: Member, absent: Absent, needs: tuple[bool, ...], exact: bool = False) -> list[Tensor]:
    """A member's derivation from the reference; if it shall be exact, in float64."""
    groups = groups_of(at, member, absent)
    if exact:
        groups = [[t.double() if t is not None and t.is_floating_point() else t for t in g] for g in groups]
    return at.run(getattr(at.primitive.composite, member.member), member, groups, needs)


@gpu
@pytest.mark.turns("dtype", "case")
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("primitive", "case", "member", "backend"), KERNELS)
def test_equals_the_reference_or_refuses(
    primitive: Primitive, case: Case, member: Member, backend: str, dtype: torch.dtype, turn: int | None
) -> None:
    """With everything given, and with any one cotangent or tangent absent, or (in float64) all but one. The tolerance
    law: at worst three times the worst error of the reference in that dtype, and two roundings, for a kernel reads
    out and lse as they were rounded, and rounds its weights."""
    at = arguments(primitive, case, dtype)
    moving = [g for g in member.groups if g in ("tx", "ux", "wx", "dy", "tdy")]
    optional = [(g, i) for g in moving for i, t in enumerate(at.groups[g]) if t is not None]
    wide = dtype == torch.float64
    absences = [Absent({one}) for one in optional] + [Absent({*optional} - {one}) for one in optional if wide]
    if turn is not None and absences:
        absences = [absences[turn % len(absences)]]
    worst, allowed = 0.0, torch.finfo(dtype).eps
    for absent in dict.fromkeys([Absent(), *absences]):  # of two, all but one is the other
        groups = groups_of(at, member, absent)
        if against := at.against(member, groups, backend):
            with pytest.raises(Unsupported) as refusal:
                member(*groups, options=(*at.options.values(), backend), needs=at.needs)
            assert all(reason in str(refusal.value) for reason in against)
            continue
        got = at.run(getattr(module(backend, primitive.name), member.member), member, groups, at.needs)
        same = wanted(at, member, absent, at.needs)
        exact = same if wide else wanted(at, member, absent, at.needs, exact=True)
        assert [(t.dtype, t.is_contiguous()) for t in got] == [(t.dtype, True) for t in same]
        worst, allowed = (
            max(worst, error(got, exact)),
            max(allowed, 3 * error(same, exact) + 2 * torch.finfo(dtype).eps),
        )
    allowed = 1e-10 if wide else allowed
    assert worst <= allowed, f"error {worst:.2e} exceeds {allowed:.2e} in {dtype}"


@gpu
@pytest.mark.parametrize(("primitive", "case", "member", "backend"), KERNELS)
def test_an_unwanted_gradient_is_none(primitive: Primitive, case: Case, member: Member, backend: str) -> None:
    """In float64, or on tiny cases in the first dtype that the backend takes."""
    dtypes = DTYPES if "tiny" in case.tags else DTYPES[:1]
    for dtype in dtypes if member.inward else ():
        at, absent = arguments(primitive, case, dtype), Absent({("dy", 1)})
        groups = groups_of(at, member, absent)
        if at.against(member, groups, backend):
            continue
        kernel = getattr(module(backend, primitive.name), member.member)
        for one in range(len(at.needs)):
            needs = tuple(need and i == one for i, need in enumerate(at.needs))
            got, want = at.run(kernel, member, groups, needs), wanted(at, member, absent, needs)
            agree(got, want, 1e-10 if dtype == torch.float64 else 32 * torch.finfo(dtype).eps)
        return
