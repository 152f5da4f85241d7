"""CUDA's kernels, run on the CPU: what ``laws/test_kernels.py`` does not ask of every kernel, and whether the machine
that runs them finds what is wrong.

``make gpu`` runs it, and those laws, with ``-p tests.gpu.emulator``.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, func

import xfn
from xfn import random
from xfn.sparsity import Csr

from ..cases import error
from ..laws.test_fuzz import FUZZ, Problem, agrees
from ..laws.test_fuzz_sparse import SparseProblem, sparse_problems

emulator: Any = sys.modules.get("tests.gpu.emulator")
pytestmark = pytest.mark.skipif(emulator is None, reason="the CUDA kernels are not emulated here")
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.usefixtures("poisoned")
@settings(FUZZ, max_examples=10)
@given(sparse_problems(st.integers(0, 60)).filter(lambda problem: problem.dtype != torch.float64))
def test_any_call_equals_the_reference(problem: SparseProblem) -> None:
    agrees(problem, Problem.family, "cuda")


def both(csr: Csr, x: tuple[Tensor, ...], backend: str, dtype: torch.dtype) -> list[Tensor]:
    """Value and gradient, in a row."""
    f = lambda q, k, v: xfn.sparse_attention_with_lse(csr, q, k, v, 0.2, key=random.key(7), backend=backend)
    y, pull = func.vjp(f, *(t.to(dtype) for t in x))[:2]
    return [*y, *pull(tuple(torch.linspace(-1, 1, t.numel()).view(t.shape).to(t.dtype) for t in y))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("K", "V"), [(1, 1), (8, 16), (256, 30), (257, 3), (264, 512), (40, 1024), (1001, 7)])
@pytest.mark.parametrize("spare", [0, 1])
def test_rows_of_any_width(K: int, V: int, dtype: torch.dtype, spare: int) -> None:
    """Whole vectors or not, and in memory where they begin at any number."""
    draw = lambda *shape: torch.randn(*shape[:-1], shape[-1] + 2 * spare)[..., spare : spare + shape[-1]]
    csr = Csr.from_mask(random.bernoulli(random.key(1), 0.5, (6, 70)))
    x = tuple(draw(*shape).to(dtype) for shape in ((6, 2, K), (70, 1, K), (70, 1, V)))
    got, same, exact = (
        both(csr, x, backend, to)
        for backend, to in (("cuda", dtype), ("reference", dtype), ("reference", torch.float64))
    )
    for mine, theirs, right in zip(got, same, exact, strict=True):
        assert error(mine, right) <= 3 * error(theirs, right) + 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_two_documents_never_meet(bad: float) -> None:
    csr = Csr.from_mask(torch.block_diag(torch.ones(3, 2), torch.ones(4, 3)).bool())
    x = tuple(torch.randn(n, 2, 4) for n in (7, 5, 5))
    spoilt = tuple(t.index_fill(0, torch.arange(first, len(t)), bad) for t, first in zip(x, (3, 2, 2), strict=True))
    pairs = zip(both(csr, spoilt, "cuda", torch.float32), both(csr, x, "cuda", torch.float32), strict=True)
    first: tuple[Any, ...] = (slice(3), (slice(None), slice(3)), slice(3), slice(2), slice(2))
    for (got, want), part in zip(pairs, first, strict=True):
        assert torch.equal(got[part], want[part])
        assert not got.isfinite().all()


def test_a_row_that_sees_nothing_takes_any_cotangent() -> None:
    csr = Csr.from_mask(torch.tensor([[True, True], [False, False], [True, False]]))
    x = tuple(torch.randn(n, 2, 4) for n in (3, 2, 2))
    out, lse, dq, *_ = both(csr, x, "cuda", torch.float32)
    assert (out[1] == 0).all()
    assert (lse[:, 1] == -torch.inf).all()
    assert (dq[1] == 0).all()


def test_bits_repeat() -> None:
    csr = Csr.from_mask(random.bernoulli(random.key(2), 0.4, (40, 50)))
    x = tuple(torch.randn(2, n, h, 24) for n, h in ((40, 4), (50, 2), (50, 2)))
    assert all(map(torch.equal, *(both(csr, x, "cuda", torch.bfloat16) for _ in range(2))))


def test_tables_that_lie_read_nothing_else() -> None:
    """Whoever makes them by hand: the machine would say so."""
    csr, x = Csr.from_mask(random.bernoulli(random.key(0), 0.5, (7, 7))), (torch.randn(7, 2, 3),) * 3
    for name in ("row_ends", "columns", "column_ends", "rows", "order"):
        for worse in (getattr(csr, name) + 50, getattr(csr, name) - 50):
            lying = Csr(**{**vars(csr), name: worse})
            both(lying, x, "cuda", torch.float32)
            values = xfn.sddmm(lying, *x[:2], backend="cuda")
            func.vjp(lambda v, lying=lying, values=values: xfn.spmm(lying, values, v, backend="cuda"), x[0])[1](x[0])


# The machine itself: kernels with a mistake, and without.


PLANTED = {
    "beside": "4 bytes read outside of the tensors by thread 31 of block 0",
    "behind": "4 bytes written outside of the tensors by thread 31 of block 0",
    "onto": "4 bytes written outside of the tensors by thread 0 of block 0",
    "around": "a race: the same bytes are accessed by two threads",
    "together": "a race: the same bytes are accessed by two threads",
    "twice": "a race: the same bytes are accessed by two threads by thread 0 of block 1",
    "apart": "lanes of a warp part at a meeting",
}


@pytest.mark.parametrize("which", range(len(PLANTED)), ids=list(PLANTED))
def test_a_mistake_is_found(which: int) -> None:
    library = ctypes.CDLL(str(emulator.compile(ROOT / "tests" / "gpu" / "planted")))
    library.text.restype = ctypes.c_char_p
    data = torch.arange(64.0), torch.zeros(128)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in data]
    for t, pointer, writes in zip(data, pointers, (0, 1), strict=True):
        library.machine_allow(pointer, ctypes.c_size_t(t.numel() * t.element_size()), writes)
    try:
        assert library.planted(which, *pointers, 0) == 0
        failed = library.planted(which, *pointers, 1000)
        assert failed
        assert list(PLANTED.values())[which] in library.text(failed).decode()
    finally:
        library.machine_forget()


MISTAKES = {
    "no edge": ("if (f >= features) continue;\n      const Pack", "const Pack", "outside of the tensors"),
    "no rescaling": ("sum * times + sums * others", "sum + sums", "exceeds"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_kernels_is_found(name: str, tmp_path: Path) -> None:
    """By the laws, as they are."""
    right, wrong, said = MISTAKES[name]
    sources = {path.name: path.read_text() for path in emulator.SOURCES.iterdir()}
    assert sum(right in text for text in sources.values()) == 1
    for file, text in sources.items():
        (tmp_path / file).write_text(text.replace(right, wrong))
    laws = ["tests/laws/test_kernels.py", "-k", "sparse_attention-all and cuda and float32 and ward"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.gpu.emulator", *laws]
    environment = os.environ | {"XFN_EMULATED": str(emulator.compile(tmp_path, tmp_path / "built"))}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stdout
