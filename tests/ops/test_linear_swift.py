"""Plain maps without Python, those of many rows by our own products: what torch's map gives, under autograd too."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad, grad

import xfn
from xfn._core.dispatch import module, swift
from xfn.ops.fused_linear import affine

try:
    SWIFT = swift("cpu", "linear")
    MISSING = SWIFT is None and f"no library: {getattr(module('cpu', 'linear'), 'DETAIL', '')}"
except ImportError as error:
    MISSING = str(error)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"there is nothing to test: {MISSING}")

EPS = torch.finfo(torch.float32).eps
M, E, F = 70, 128, 272  # no whole sixes of rows, nor whole panels of columns; and more than the least work


def faster() -> bool:
    """Whether this machine is one where they are taken."""
    return not MISSING and bool(torch.ops.xfn_cpu.multiplies())


taken = pytest.mark.skipif(not faster(), reason="torch's own products are taken on this processor")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def operands(*batch: int) -> list[Tensor]:
    return [
        randn(*batch, M, E).requires_grad_(),
        randn(F, E, seed=1).requires_grad_(),
        randn(F, seed=2).requires_grad_(),
    ]


def near(got: Any, want: Any, depth: int) -> None:
    """As near as sums of ``depth`` products of float32 are."""
    for a, b in zip(got, want, strict=True):
        assert (a.dtype, a.shape) == (torch.float32, b.shape)
        largest = max([1.0, *b.detach().abs().flatten().tolist()])
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=4 * EPS * depth**0.5 * largest)


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(0, 40), st.integers(0, 600), st.booleans(), st.booleans(), st.booleans())
def test_a_product_is_the_sum_of_products(m: int, n: int, k: int, a_lies: bool, b_lies: bool, added: bool) -> None:
    """For every size, of operands that stand or lie."""
    k = k // 16 * 16 if b_lies else k
    a = randn(k, m).mT if a_lies and m > 1 else randn(m, k)
    b = randn(16 * n, k, seed=1).mT if b_lies else randn(k, 16 * n, seed=1)
    line = randn(16 * n, seed=2) if added else None
    want = a.double() @ b.double() + (0 if line is None else line)
    near([torch.ops.xfn_cpu.product(a, b, line)], [want], max(1, k))


ISA = """
import torch
from xfn.kernels.cpu import library
assert library.isa() == "{isa}"
a, b = torch.randn(300, 304), torch.randn(304, 272)
for x, y in ((a, b), (torch.randn(304, 300).T, b), (a, torch.randn(272, 304).T)):
    got, want = torch.ops.xfn_cpu.product(x, y, y[0].contiguous()), x.double() @ y.double() + y[0]
    assert (got - want).abs().max() < 1e-3, (got - want).abs().max()
"""


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_every_instruction_set_multiplies(isa: str) -> None:
    environment = {**os.environ, "XFN_ISA": isa}
    run = subprocess.run(
        [sys.executable, "-c", ISA.format(isa=isa)], capture_output=True, text=True, env=environment, check=False
    )
    if f'assert library.isa() == "{isa}"' in run.stderr:
        pytest.skip(f"this machine has no {isa}")
    assert run.returncode == 0, run.stderr


@taken
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)], ids=str)
def test_value_and_gradient_are_torch_s(batch: tuple[int, ...], biased: bool) -> None:
    x = operands(*batch)[: 2 + biased]
    y, want = affine(*(*x, None)[:3]), torch.nn.functional.linear(*(t.double() for t in x))
    assert "Linear" in y.grad_fn.name()  # type: ignore[union-attr]
    near([y], [want], E)
    dy = randn(*y.shape, seed=3)
    near(grad(y, x, dy), grad(want, x, dy.double()), max(F, y.numel() // F))
    with torch.no_grad():
        assert torch.equal(affine(*(*x, None)[:3]), y)
    with torch.inference_mode():
        assert torch.equal(affine(*(*x, None)[:3]), y)


@taken
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_only_what_is_wanted_is_returned(wanted: tuple[int, ...]) -> None:
    x = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(operands())]
    y = affine(x[0], x[1], x[2])
    want = torch.nn.functional.linear(*(t.double() for t in x))
    some = [x[i] for i in wanted]
    near(grad(y.square().sum(), some), grad(want.square().sum(), some), E * F)


@taken
def test_gradients_have_gradients_and_batches() -> None:
    x, w, b = operands()

    def twice(y: Tensor) -> Any:
        first = grad(y.square().sum(), (x, w, b), create_graph=True)
        return grad(sum(g.square().sum() for g in first), (x, w, b))

    def exact() -> Tensor:
        return torch.nn.functional.linear(x.double(), w.double(), b.double())

    for a, c in zip(twice(affine(x, w, b)), twice(exact()), strict=True):
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-4 * float(c.abs().max()))
    dy = randn(3, M, F, seed=3)
    batched = (grad(y, (x, w, b), d, is_grads_batched=True) for y, d in ((affine(x, w, b), dy), (exact(), dy.double())))
    near(*batched, F)


def test_only_what_a_gradient_needs_is_kept() -> None:
    """So that what it does not need may be written on, and is no memory."""
    x, w, b = operands()
    for pair, changed, wanted in (((x.detach(), w), 1, w), ((x, w.detach()), 0, x), ((x.detach(), w.detach()), 0, b)):
        leaves = [t * 1 for t in pair]
        y = affine(leaves[0], leaves[1], b)
        with torch.no_grad():
            leaves[changed].mul_(2)
        want = torch.nn.functional.linear(pair[0].double(), pair[1].double(), b.double())
        near(grad(y.sum(), wanted), grad(want.sum(), wanted), E * F)


@pytest.fixture
def threads() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@taken
@pytest.mark.usefixtures("threads")
def test_neither_threads_nor_other_rows_change_a_bit() -> None:
    x, w, b = (t.detach() for t in operands(5))
    found = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        found.append(affine(x, w, b))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0][2], affine(x[2], w, b))


Call = tuple[Tensor, Tensor, Tensor | None]


def torchs() -> dict[str, Call]:
    """Calls that torch's product is better at."""
    x, w, b = operands()
    return {
        "few rows": (x[:31], w, b),
        "little work": (x[:, :16].contiguous(), w[:, :16], b),
        "odd features": (randn(M, 130), randn(F, 130), b),
        "odd outputs": (x, w[:-1], b[:-1]),
        "strides": (x.mT.contiguous().mT, w, b),
        "a strided bias": (x, w, b.repeat_interleave(2)[::2]),
        "no bias": (x[:1], w, None),
        "half types": (x.bfloat16(), w.bfloat16(), b.bfloat16()),
        "doubles": (x.double(), w.double(), b.double()),
    }


@pytest.mark.parametrize("name", torchs())
def test_such_a_call_is_torch_s(name: str) -> None:
    """To the bit, and with its gradient."""
    assert SWIFT is not None
    x, w, b = torchs()[name]
    y, want = SWIFT(x, w, b), torch.nn.functional.linear(x, w, b)
    assert torch.equal(y, want)
    assert type(y.grad_fn) is type(want.grad_fn)
    leaves = [t for t in (x, w, b) if t is not None and t.requires_grad]
    assert all(map(torch.equal, grad(y.sum(), leaves), grad(want.sum(), leaves)))


def declined() -> dict[str, Call]:
    """Calls that are to raise, or to be looked at elsewhere."""
    x, w, b = (t.detach() for t in operands())
    return {
        "other features": (x, randn(F, 144), b),
        "other bias": (x, w, b[:-16]),
        "one bias": (x, w, b[:1]),
        "a row": (x[0], w, b),
        "no rows": (x[:0], w, b),
        "weights of each": (x, w.expand(2, -1, -1), b),
        "other dtypes": (x, w.bfloat16(), b),
        "a bias of another dtype": (x, w, b.double()),
        "integers": (x.int(), w.int(), None),
        "elsewhere": (x.to("meta"), w.to("meta"), None),
        "sparse": (x.to_sparse(), w, b),
    }


@pytest.mark.parametrize("name", declined())
def test_any_other_call_is_declined(name: str) -> None:
    assert SWIFT is not None
    assert SWIFT(*declined()[name]) is None


def test_a_call_is_declined_where_something_is_on() -> None:
    assert SWIFT is not None
    with torch.autocast("cpu"):
        assert SWIFT(*operands()) is None
    with forward_ad.dual_level():
        x, w, b = (t.detach() for t in operands())
        assert SWIFT(forward_ad.make_dual(x, x), w, b) is None
    x, w, b = (t.detach() for t in operands())
    rows = torch.func.vmap(lambda row: xfn.linear({"weight": w, "bias": b}, row))(x)
    near([rows], [torch.nn.functional.linear(x.double(), w.double(), b.double())], E)
    tangent = torch.func.jvp(lambda x: affine(x, w, b), (x,), (x,))[1]
    near([tangent], [x.double() @ w.double().mT], E)
