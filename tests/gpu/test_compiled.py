"""Every Triton kernel as it ships, compiled ahead of time: it fits, and keeps its numbers in registers.

An interpreter takes what a compiler refuses, so this is asked of each member of each family, at every size of tile,
on the cases that are tagged ``compiled``.
"""

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from xfn._core.case import Case
from xfn._core.dispatch import module
from xfn._core.member import Member
from xfn._core.primitive import Primitive
from xfn.info import primitives

from ..cases import implemented
from ..laws.test_kernels import Arguments

compiler = pytest.importorskip("tests.gpu.compiler", reason="triton is not installed")
ARCHITECTURES = (80, 90, 100)
HEADS, ROWS = (64, 128, 256, 1024), (64, 1000, 8192, 20000)
"""Numbers of features: of a head, and of a row that is one example's."""
SPILL, ROOM, NEVER = 128, 512, 1 << 20
"""Bytes a thread may spill: in half types behind a mask at most, in other calls, and in the launch that cleans,
which is there for numbers that are not finite."""


def calls() -> Iterator[Any]:
    """Each case at the smallest tiles, and the first at all of them."""
    for primitive, cases in primitives():
        if find_spec(f"xfn.kernels.triton.{primitive.name}") is None:
            continue
        tagged = [case for case in cases if "compiled" in case.tags]
        for architecture in ARCHITECTURES:
            for i, case in enumerate(tagged):
                sizes = [(dtype, width) for dtype in (torch.bfloat16, torch.float32) for width in widths(primitive)]
                for dtype, width in sizes if i == 0 else sizes[:1]:
                    name = f"{primitive.name}-{case}-{str(dtype).removeprefix('torch.')}-{width}-sm{architecture}"
                    first = (dtype, width) == sizes[0]
                    marks = [] if brief(primitive, i, first, architecture) else [pytest.mark.whole]
                    yield pytest.param(primitive, case, dtype, width, architecture, id=name, marks=marks)


def widths(primitive: Primitive) -> tuple[int, ...]:
    return HEADS if "K" in letters(primitive) else ROWS


def letters(primitive: Primitive) -> dict[str, None]:
    """Of what a row has."""
    return dict.fromkeys(o.dims[-1] for o in primitive.signature.operands if not o.optional)


def brief(primitive: Primitive, case: int, first: bool, architecture: int) -> bool:
    """Under ``--brief`` all of that for sm_90, and for the others the first case at the smallest tiles. An op that
    takes the kernels of another is compiled for sm_90 at the smallest tiles."""
    own = module("triton", primitive.name).forward.__module__ == f"xfn.kernels.triton.{primitive.name}"
    return (architecture == 90 and (first or own)) or (own and first and case == 0)


def members(primitive: Primitive) -> list[Member]:
    return [m for m in implemented(primitive, "triton") if hasattr(module("triton", primitive.name), m.member)]


@pytest.mark.parametrize(("primitive", "case", "dtype", "width", "architecture"), list(calls()))
def test_a_kernel_fits(
    primitive: Primitive, case: Case, dtype: torch.dtype, width: int, architecture: int, pytestconfig: pytest.Config
) -> None:
    """Under ``--brief`` but for the launch that cleans."""
    rows = {} if "K" in letters(primitive) else {"M": 32}
    at = Arguments(
        primitive, replace(case, sizes={**case.sizes, **rows, **dict.fromkeys(letters(primitive), width)}), dtype
    )
    plain = dtype != torch.float32 and all(t is None for t in (*at.groups["x"][3:], *at.groups["c"][-1:]))
    with compiler.compiling(architecture, strict=not pytestconfig.option.brief) as found:
        for member in members(primitive):
            groups = at.of(member)
            if any(not why.startswith("it runs on") for why in at.against(member, groups, "triton")):
                continue
            kernel = getattr(module("triton", primitive.name), member.member)
            kernel(*groups, *[at.needs] * member.inward, **at.options)
    assert found
    spill = lambda k: NEVER if k.strict else SPILL if plain else ROOM
    against = [why for k in found for why in k.against(architecture, spill(k))]
    assert not against, "\n".join(against)


FUSED = pytest.importorskip("xfn.kernels.triton.fused_linear", reason="triton is not installed")
TILES = {"HALF": (torch.bfloat16, (80,)), "GROUPS": (torch.float16, (90, 100)), "WIDE": (torch.float32, ARCHITECTURES)}
SIZES = [
    pytest.param(tile, dtype, architecture, id=f"{table}-{tile.BM}x{tile.BN}-sm{architecture}", marks=marks)
    for table, (dtype, architectures) in TILES.items()
    for tile in getattr(FUSED, table)
    for architecture in architectures
    for marks in [[] if architecture == 90 and tile is getattr(FUSED, table)[0] else [pytest.mark.whole]]
]


@pytest.mark.parametrize(("tile", "dtype", "architecture"), SIZES)
def test_a_product_fits(tile: Any, dtype: torch.dtype, architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what follows it, in each size of tile, which so many rows and columns take; float32 in either precision. Of
    half types it spills nothing."""
    R, F, key = 16 * tile.BM, 8 * tile.BN, torch.zeros(2, dtype=torch.int64)
    x, weight, bias, residual = (torch.empty(shape, dtype=dtype) for shape in ((R, 64), (F, 64), (F,), (R, F)))
    with compiler.compiling(architecture) as found:
        for precision in ("ieee", "tf32")[: 1 + (dtype == torch.float32)]:
            monkeypatch.setattr(FUSED, "precision", lambda precision=precision: precision)
            FUSED.forward((x, weight, bias, None), (None,), p=0.0, activation="gelu")
            FUSED.forward((x, weight, bias, residual), (key,), p=0.1, activation="gelu")
        assert FUSED.tile(1, R, F, dtype)[:3] == tile[:3]
    assert len(found) == 2 * (1 + (dtype == torch.float32))
    against = [why for k in found for why in k.against(architecture, SPILL if dtype == torch.float32 else 0)]
    assert not against, "\n".join(against)


GATES = {
    "bytes spilt": (80, 128, {"BM": 128, "BN": 128, "num_warps": 4, "num_stages": 1}),
    "bytes of shared memory": (90, 256, {"BM": 64, "BN": 64, "num_warps": 8, "num_stages": 4}),
    "its products wait": (90, 64, {"BM": 128, "BN": 128, "num_warps": 4, "num_stages": 2}),
}


@pytest.mark.parametrize("what", GATES)
def test_a_kernel_that_does_not_fit_is_found(what: str) -> None:
    """Each gate alone refuses the tiles that are wrong in its way."""
    launch = pytest.importorskip("xfn.kernels.triton.attention.launch")
    architecture, width, tiles = GATES[what]
    primitive, cases = next((p, cases) for p, cases in primitives() if p.name == "attention")
    at = Arguments(primitive, replace(cases[0], sizes={**cases[0].sizes, "K": width, "V": width}), torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch, compiler.compiling(architecture) as found:
        patch.setattr(module("triton", "attention").config, "HOPPER", False)
        patch.setattr(launch, "tiles", lambda *_: tiles | {"BK": width, "BV": width})
        module("triton", "attention").forward(*at.of(primitive.forward), **at.options)
    (why,) = found[0].against(architecture, SPILL)
    assert what in why
