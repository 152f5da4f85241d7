"""Every case × every transform × every backend, in float64, against einsum in jax.numpy under JAX's own transforms."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from xfn.kernels.tiled import grid

from .cases import CASES, MAPPED, Case, Mapped, P
from .programs import PROGRAMS, THIRD, Array, Arrays, Library, Point, Program

jax = pytest.importorskip("jax", reason="jax is not installed: make oracle installs it")
jnp = jax.numpy
jax.config.update("jax_enable_x64", True)

TORCH, JAX = Library(torch.func, torch.where, torch.isinf), Library(jax, jnp.where, jnp.isinf)
BACKENDS = ("chosen", "tiled", "two queries a tile")
TOLERANCE = 1e-9
QUICKLY = {
    "xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1
}  # fmt: skip
"""XLA's options for programs that run once: they compile in a fourth of the time."""

Leaf = npt.NDArray[np.float64]
Leaves = list[Leaf]
Agree = Callable[[Program, Any, Leaves], None]


def attend(case: Case, q: Array, k: Array, v: Array, *rest: Array) -> Arrays:
    """out and lse from the definition; a row that sees nothing is kept out of every division and logarithm."""
    scale = q.shape[-1] ** -0.5 if case.scale is None else case.scale
    heads = np.arange(q.shape[-2]) // (q.shape[-2] // k.shape[-2])
    logits = scale * jnp.einsum("...mhk,...nhk->...hmn", q, k[..., heads, :]) + case.added(*rest)
    weights = jnp.where(case.visible, jnp.exp(jnp.where(case.visible, logits, 0.0)), 0.0)
    some = case.visible.any(-1)
    total = jnp.where(some, weights.sum(-1), 1.0)
    mix = weights / total[..., None]
    if case.kept is not None:
        mix = mix * case.kept / (1 - round(P * 65536) / 65536)
    out = jnp.einsum("...hmn,...nhv->...mhv", mix, v[..., heads, :])
    return out, jnp.where(some, jnp.log(total), -jnp.inf)


@cache
def draw(case: Case, *lead: int) -> Point:
    """With ``lead``, so many points."""
    generator = np.random.default_rng(0)
    stacks = [lead, lead, lead, (*lead, 3), (*lead, 3)]
    normal = lambda stack, shape: np.asarray(generator.standard_normal((*stack, *shape)))
    return Point(*(tuple(normal(stack, shape) for shape in case.shapes) for stack in stacks))


def run(program: Callable[..., Any], *at: Any) -> Leaves:
    """What JAX makes of a program."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(program, compiler_options=QUICKLY)(*at))]


@lru_cache(maxsize=1)
def wanted(case: Case, program: Program) -> Leaves:
    """Kept for the next backend."""
    return run(lambda p: program(JAX, partial(attend, case), p), draw(case))


@lru_cache(maxsize=1)
def wanted_of_each(mapped: Mapped, program: Program) -> Leaves:
    def one(p: Point, value: Array) -> Any:
        return program(JAX, partial(attend, replace(mapped.case, **{mapped.field: value})), p)

    return run(jax.vmap(one), draw(mapped.case, 3), mapped.values)


def error(got: Any, want: Leaves) -> float:
    """The largest difference in an array, relative to its largest number; an array of zeros takes that of them all."""
    worst, most = 0.0, max(_most(b) for b in want)
    for a, b in zip((leaf.detach().numpy() for leaf in jax.tree.leaves(got)), want, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype == np.float64
        finite = np.isfinite(b)
        assert np.array_equal(a[~finite], b[~finite])
        scale = next(size for size in (_most(b), most, 1.0) if size > most * TOLERANCE)
        found = np.nan_to_num(np.abs(np.subtract(a, b, where=finite, out=np.zeros_like(b))), nan=np.inf)
        worst = max(worst, float(found.max(initial=0.0)) / scale)
    return worst


def _most(a: Leaf) -> float:
    return float(np.abs(a[np.isfinite(a)]).max(initial=0.0))


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    if request.param == "two queries a tile":
        monkeypatch.setattr(grid, "ELEMENTS", 1)
        monkeypatch.setattr(grid, "ROWS", 2)
    return None if request.param == "chosen" else "tiled"


@pytest.fixture
def agree(record_property: Callable[[str, object], None]) -> Agree:
    def check(program: Program, got: Any, want: Leaves) -> None:
        found = error(got, want)
        record_property("oracle", (program.__name__, found))
        assert found <= TOLERANCE, f"relative error {found:.2e} exceeds {TOLERANCE:.0e}"

    return check


PAIRS = [
    pytest.param(case, program, id=f"{case}-{program.__name__}")
    for i, case in enumerate(CASES)
    for j, program in enumerate(PROGRAMS)
    if program not in THIRD or i % 4 == j % 4
]


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize(("case", "program"), PAIRS)
def test_equals_jax(case: Case, program: Program, backend: str | None, agree: Agree) -> None:
    p = jax.tree.map(torch.from_numpy, draw(case))
    agree(program, program(TORCH, partial(case.call, backend=backend), p), wanted(case, program))


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.parametrize("mapped", MAPPED, ids=str)
def test_equals_jax_where_constants_are_mapped(
    mapped: Mapped, program: Program, backend: str | None, agree: Agree
) -> None:
    """vmap of every transform, over what is not differentiated too."""
    one = lambda p, constant: program(TORCH, partial(mapped.call, constant, backend=backend), p)
    p = jax.tree.map(torch.from_numpy, draw(mapped.case, 3))
    agree(program, torch.func.vmap(one)(p, mapped.constants), wanted_of_each(mapped, program))
