"""Triton's kernels, interpreted on the CPU: what ``laws/test_kernels.py`` does not ask of every kernel.

This process must have been told so before triton is imported: ``make gpu`` runs it, and those laws, with
TRITON_INTERPRET=1 and ``-p tests.gpu.interpreter``.
"""

import os
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, func
from torch.utils import _pytree as tree

import xfn
from xfn import bias, layout

from ..cases import error
from ..laws.test_fuzz import FUZZ, Problem, numbers, problems
from ..ops.test_attention_spoilt import APART

HIDES = {name: lambda *x, h=h, **kw: xfn.attention_with_lse(*x, h, **kw) for name, h in APART.items()}
HIDES["layout"] = partial(
    xfn.blocksparse_attention_with_lse,
    layout.from_mask(torch.block_diag(torch.ones(3, 2), torch.ones(2, 3)).bool(), block=8),
)
BRIEF = {name: () if name in ("mask", "layout") else pytest.mark.whole for name in HIDES}
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="triton does not interpret here")


def runs(problem: Problem) -> bool:
    """Nothing that is refused."""
    return problem.dtype != torch.float64


@pytest.mark.whole
@pytest.mark.usefixtures("poisoned")
@settings(FUZZ, max_examples=12)
@given(problems(st.integers(1, 24), st.integers(1, 24)).filter(runs))
def test_any_call_equals_the_reference(problem: Problem) -> None:
    """Within three times the reference's own error and thirty-two roundings."""
    got, same = (problem.family(backend, problem.dtype) for backend in ("triton", "reference"))
    exact = problem.family("reference", torch.float64)
    for member, want in exact.items():
        mine, theirs, right = (numbers(found) for found in (got[member], same[member], want))
        allowed = 3 * error(theirs, right) + 32 * torch.finfo(problem.dtype).eps
        found = error(mine, right)
        assert found <= allowed, f"{member}: error {found:.2e} exceeds {allowed:.2e}"


@pytest.mark.turns("bad", "attend")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("attend", [pytest.param(f, id=name, marks=BRIEF[name]) for name, f in HIDES.items()])
def test_two_documents_never_meet(attend: Any, bad: float) -> None:
    """Something of the second document is spoilt, one thing after the other; the first does not change by a bit."""
    shapes = dict.fromkeys(("q", "k", "v", "tq", "tk", "tv", "dout", "tdout"), (5, 1, 4)) | {"dlse": (1, 5)}
    clean = {name: torch.randn(shape) for name, shape in shapes.items()}

    def results(at: dict[str, Tensor]) -> tuple[Tensor, ...]:
        x, t = tuple(at[n] for n in "qkv"), tuple(at["t" + n] for n in "qkv")
        f = partial(attend, backend="triton")
        gradient = lambda dout, *x: func.vjp(f, *x)[1]((dout, at["dlse"]))
        tangent = lambda *x: func.jvp(f, x, t)
        moves = f(*x), *(y for pair in func.jvp(tangent, x, t) for y in pair)
        pulls = func.jvp(gradient, (at["dout"], *x), (at["tdout"], *t))
        own = [part for out, lse in moves for part in (out[:3], lse[:, :3])]
        return *own, *(part for dq, dk, dv in pulls for part in (dq[:3], dk[:2], dv[:2]))

    want = results(clean)
    for name, t in clean.items():
        spoilt = t.clone()
        spoilt[(..., slice(3, None)) if name == "dlse" else slice(2 if name[-1] in "kv" else 3, None)] = bad
        got = results(clean | {name: spoilt})
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), name


@pytest.mark.parametrize("attend", [pytest.param(f, id=name, marks=BRIEF[name]) for name, f in HIDES.items()])
def test_a_spoilt_tangent_spoils_no_value(attend: Any) -> None:
    """Whether it is seen or hidden; and it spoils the tangents of those that see it alone."""
    x, t = tuple(torch.randn(3, 5, 1, 4)), tuple(torch.randn(3, 5, 1, 4))
    f = partial(attend, backend="triton")
    want = func.jvp(f, x, t)[0]
    for one in range(3):
        spoilt = [u.clone() for u in t]
        spoilt[one][-1] = torch.nan
        got, (tout, tlse) = func.jvp(f, x, tuple(spoilt))[:2]
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        assert (tout[-1].isnan().all(), tlse[:, -1].isnan().all()) == (True, True)
        assert tout[:3].isfinite().all()
        assert tlse[:, :3].isfinite().all()


def test_a_spoilt_key_is_seen() -> None:
    """Cleaning hides nothing from the queries that see it."""
    q, k, v = torch.randn(3, 5, 2, 4)
    k[3, 1] = torch.nan
    out, lse = xfn.attention_with_lse(q, k, v, bias.causal(), backend="triton")
    assert out[3:, 1].isnan().all()
    assert lse[1, 3:].isnan().all()
    assert out[:3].isfinite().all()
    assert out[:, 0].isfinite().all()


def test_a_blind_row_takes_any_cotangent() -> None:
    q, k, v = torch.randn(3, 2, 4), torch.randn(4, 2, 4), torch.randn(4, 2, 4)
    sees = torch.tensor([True, False, True])[:, None]
    slope = func.grad(lambda *x: xfn.attention_with_lse(*x, sees, backend="triton")[1].square().sum(), (0, 1))
    dq, dk = slope(q, k, v)
    assert (dq[1] == 0).all()
    assert dk.isfinite().all()


def test_maps_and_batches_of_any_rank_are_strides() -> None:
    """Per-example gradients under two maps, keys shared by one of them, equal those of each example alone."""
    q, k, v = torch.randn(2, 3, 2, 5, 2, 4), torch.randn(3, 2, 5, 1, 4), torch.randn(3, 2, 5, 1, 4)
    f = lambda *x: xfn.attention(*x, bias.causal(), backend="triton").square().sum()
    slope = func.grad(f, (0, 1, 2))
    mapped = func.vmap(func.vmap(slope), (0, None, None))(q, k, v)
    for i in range(2):
        for j in range(3):
            alone = slope(q[i, j], k[j], v[j])
            assert all(torch.allclose(a[i, j], b, atol=1e-5) for a, b in zip(mapped, alone, strict=True))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
def test_a_gradient_is_one_launch_of_what_is_wanted(wanted: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind that of δ: a program for each of four tiles of queries, and of four of keys; so is how it moves."""
    launch = pytest.importorskip("xfn.kernels.triton.attention.launch")
    found, run = [], launch.Launch.run

    def noted(call: Any, kernel: Any, programs: int, *args: Any, **options: Any) -> None:
        found.append((kernel.__name__, programs))
        run(call, kernel, programs, *args, **options)

    monkeypatch.setattr(launch.Launch, "run", noted)
    x = tuple(torch.randn(3, 20, 2, 8))
    slope = func.grad(lambda *x: xfn.attention(*x, backend="triton").sum(), wanted)
    func.jvp(lambda *x: slope(*x), x, x)
    programs = 4 * (0 in wanted) + 4 * (wanted != (0,))
    behind = [launched for launched in found if launched[0] not in ("forward", "tangent")]
    assert behind == [("deltas", 4), ("gradient", programs), ("deltas", 4), ("turn", programs)]


@pytest.mark.parametrize(
    "attend", [xfn.attention, partial(xfn.blocksparse_attention, layout.strided(20, block=8, stride=2))]
)
def test_bits_repeat(attend: Any) -> None:
    x = torch.randn(3, 2, 20, 2, 8)
    b = torch.randn(1, 2, 20, 20)
    slope = func.grad(lambda q, k, v, b: attend(q, k, v, b, backend="triton").square().sum(), (0, 1, 2, 3))
    both = lambda: tree.tree_leaves(func.jvp(slope, (*x, b), (*x, b)))
    assert all(torch.equal(a, b) for a, b in zip(both(), both(), strict=True))


def test_a_line_without_tiles_is_zero_and_gets_zero() -> None:
    """And NaNs in it reach nobody."""
    made = ~layout.global_(70, 50, block=16, tokens=[20])
    x = torch.randn(70, 2, 8), torch.randn(50, 1, 8), torch.randn(50, 1, 8)
    spoilt = [t.clone() for t in x]
    for t in spoilt:
        t[16:32] = torch.nan
    f = lambda *x: xfn.blocksparse_attention_with_lse(made, *x, backend="triton")
    out, lse = f(*x)
    tout, tlse = func.jvp(f, x, x)[1]
    grads = func.grad(lambda *x: f(*x)[0].sin().sum(), (0, 1, 2))(*x)
    assert (lse[:, 16:32] == -torch.inf).all()
    assert not any(t[16:32].any() for t in (out, tout, tlse.mT, *grads))
    assert all(torch.equal(a, b) for a, b in zip(f(*spoilt), (out, lse), strict=True))


def test_each_example_may_have_a_layout() -> None:
    """Of tiles that heads share, or each has its own of."""
    for H in (1, 2):
        blocks = torch.rand(2, H, 2, 3, generator=torch.Generator().manual_seed(0)) < 0.5
        q, k, v = torch.randn(2, 20, 2, 4), torch.randn(2, 40, 2, 4), torch.randn(2, 40, 2, 4)

        def slope(b: Tensor, *x: Tensor) -> tuple[Tensor, ...]:
            tiles = layout.Layout(b, 16, (20, 40))
            f = lambda *x: xfn.blocksparse_attention(tiles, *x, backend="triton").square().sum()
            return tuple(func.grad(f, (0, 1, 2))(*x))

        mapped = func.vmap(slope)(blocks, q, k, v)
        for i in range(2):
            alone = slope(blocks[i], q[i], k[i], v[i])
            assert all(torch.equal(a[i], b) for a, b in zip(mapped, alone, strict=True))
