"""CUDA's kernels, run on the CPU: what ``laws/test_kernels.py`` does not ask of every kernel, and whether the machine
that runs them finds what is wrong.

``make gpu`` runs it, and those laws, with ``-p tests.gpu.emulator``.
"""

import ctypes
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, func

import xfn
from xfn import bias, random
from xfn._core.dispatch import Call, choose
from xfn.bias import Bias
from xfn.sparsity import Csr

from ..cases import error
from ..laws.test_fuzz import FUZZ, Problem, agrees, problems
from ..laws.test_fuzz_sparse import SparseProblem, sparse_problems

emulator: Any = sys.modules.get("tests.gpu.emulator")
pytestmark = pytest.mark.skipif(emulator is None, reason="the CUDA kernels are not emulated here")
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.usefixtures("poisoned")
@settings(FUZZ, max_examples=10)
@given(sparse_problems(st.integers(0, 60)).filter(lambda problem: problem.dtype != torch.float64))
def test_any_call_equals_the_reference(problem: SparseProblem) -> None:
    agrees(problem, Problem.family, "cuda")


@pytest.mark.usefixtures("poisoned")
@settings(FUZZ, max_examples=10)
@given(problems(st.integers(0, 60), st.integers(0, 60), st.integers(1, 32)).filter(lambda p: p.dtype != torch.float64))
def test_any_call_of_few_features_equals_the_reference(problem: Problem) -> None:
    """Less what is refused: layouts, masks and dense biases."""
    biased = tuple(name for name in problem.biased if name not in ("mask", "dense"))
    agrees(replace(problem, biased=biased, tiles=None), Problem.pair, "cuda")


def both(
    sees: Csr | Bias, x: tuple[Tensor, ...], backend: str, dtype: torch.dtype, p: float = 0.2, bad: float = 0.0
) -> list[Tensor]:
    """Value and gradient, in a row; ``bad`` is added to the cotangents of queries from the fourth on."""
    attend = partial(xfn.sparse_attention_with_lse, sees) if isinstance(sees, Csr) else xfn.attention_with_lse
    more = (p,) if isinstance(sees, Csr) else (sees, p)
    y, pull = func.vjp(lambda *x: attend(*x, *more, key=random.key(7), backend=backend), *(t.to(dtype) for t in x))[:2]
    out, lse = (torch.linspace(-1, 1, t.numel()).view(t.shape).to(t.dtype) for t in y)
    out[3:] += bad
    lse[:, 3:] += bad
    return [*y, *pull((out, lse))]


WIDTHS = {
    "entries": [(1, 1), (8, 16), (256, 30), (257, 3), (264, 512), (40, 1024), (1001, 7)],
    "all": [(1, 1), (3, 4), (5, 2), (8, 8), (1, 9), (16, 13), (17, 2), (5, 32)],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("way", "K", "V"), [pytest.param(way, *at, id=f"{way}-{at}") for way, many in WIDTHS.items() for at in many]
)
@pytest.mark.parametrize("spare", [0, 1])
def test_rows_of_any_width(way: str, K: int, V: int, dtype: torch.dtype, spare: int) -> None:
    """Whole vectors or not, and in memory where they begin at any number."""
    draw = lambda *shape: torch.randn(*shape[:-1], shape[-1] + 2 * spare)[..., spare : spare + shape[-1]]
    sees = Csr.from_mask(random.bernoulli(random.key(1), 0.5, (6, 70))) if way == "entries" else bias.local(60, 65)
    x = tuple(draw(*shape).to(dtype) for shape in ((6, 2, K), (70, 1, K), (70, 1, V)))
    agree(sees, x, dtype, 0.2 * spare, 4 if way == "entries" else 8)


def agree(sees: Csr | Bias, x: tuple[Tensor, ...], dtype: torch.dtype, p: float, roundings: int = 4) -> None:
    """``roundings`` beside the reference's own error: of one feature, what dq sums nearly cancels, and takes more."""
    got, same, exact = (
        both(sees, x, backend, to, p)
        for backend, to in (("cuda", dtype), ("reference", dtype), ("reference", torch.float64))
    )
    for mine, theirs, right in zip(got, same, exact, strict=True):
        assert error(mine, right) <= 3 * error(theirs, right) + roundings * torch.finfo(dtype).eps


APART = {
    "entries": Csr.from_mask(torch.block_diag(torch.ones(3, 2), torch.ones(4, 3)).bool()),
    "segments": bias.segments([3, 4], [2, 3]),
    "span": bias.span(torch.tensor([0, 0, 0, 2, 2, 2, 2]), torch.tensor([2, 2, 2, 5, 5, 5, 5])),
}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("sees", APART.values(), ids=APART)
def test_two_documents_never_meet(sees: Csr | Bias, bad: float) -> None:
    """The second's queries, keys, values and cotangents are spoilt, one after the other."""
    x = tuple(torch.randn(n, 2, 4) for n in (7, 5, 5))
    want = both(sees, x, "cuda", torch.float32)
    first: tuple[Any, ...] = (slice(3), (slice(None), slice(3)), slice(3), slice(2), slice(2))
    for i in range(4):
        spoilt = tuple(t.index_fill(0, torch.arange(3 if j == 0 else 2, len(t)), bad) if i == j else t
                       for j, t in enumerate(x))  # fmt: skip
        found = both(sees, spoilt, "cuda", torch.float32, bad=bad if i == 3 else 0.0)
        for got, right, part in zip(found, want, first, strict=True):
            assert torch.equal(got[part], right[part])
        assert not all(got.isfinite().all() for got in found)


BLIND = {
    "entries": Csr.from_mask(torch.tensor([[True, True], [False, False], [True, False]])),
    "span": bias.span(0, torch.tensor([2, 0, 1])),
}


@pytest.mark.parametrize("sees", BLIND.values(), ids=BLIND)
def test_a_row_that_sees_nothing_takes_any_cotangent(sees: Csr | Bias) -> None:
    x = tuple(torch.randn(n, 2, 4) for n in (3, 2, 2))
    out, lse, dq, *_ = both(sees, x, "cuda", torch.float32)
    assert (out[1] == 0).all()
    assert (lse[:, 1] == -torch.inf).all()
    assert (dq[1] == 0).all()


@pytest.mark.parametrize("few", [False, True])
def test_bits_repeat(few: bool) -> None:
    sees = bias.causal() if few else Csr.from_mask(random.bernoulli(random.key(2), 0.4, (40, 50)))
    x = tuple(torch.randn(2, n, h, 24) for n, h in ((40, 4), (50, 2), (50, 2)))
    assert all(map(torch.equal, *(both(sees, x, "cuda", torch.bfloat16) for _ in range(2))))


def test_calls_of_many_tiles() -> None:
    """Of queries, and in each of them of keys, some of which all of a warp see; an example shares its keys."""
    x = torch.randn(2, 300, 2, 3), torch.randn(1, 280, 1, 3), torch.randn(280, 1, 11)
    agree(bias.local(60, 150), x, torch.float32, 0.0)
    agree(bias.causal(), tuple(t.bfloat16() for t in x), torch.bfloat16, 0.2)


def test_they_are_chosen_where_they_pay() -> None:
    def first(dtype: torch.dtype, K: int, V: int, backend: str | None = None) -> str:
        q, v = torch.empty(3, 1, K, dtype=dtype), torch.empty(3, 1, V, dtype=dtype)
        tensors = {"q": q, "k": q, "v": v, "dense": None}
        return str(choose(["cuda", "tiled"], Call("attention", "forward", tensors, {}), backend).__module__)

    ours, others = "xfn.kernels.cuda.attention", "xfn.kernels.tiled.attention"
    assert first(torch.float32, 8, 1) == ours
    assert first(torch.float32, 8, 9) == first(torch.bfloat16, 8, 8) == others
    assert first(torch.bfloat16, 8, 9, "cuda") == ours
    torch.set_float32_matmul_precision("high")
    try:
        assert first(torch.float32, 8, 8) == others
    finally:
        torch.set_float32_matmul_precision("highest")


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
    "no edge, no barrier": [
        ("if (f >= features) continue;\n      const Pack", "const Pack", "outside of the tensors"),
        ("p.N, p.V);\n    __syncthreads();", "p.N, p.V);", "a race"),
    ],
    "no rescaling": [("sum * times + sums * others", "sum + sums", "exceeds"), ("sum[i] *= times, ", "", "exceeds")],
}
"""In the kernels over entries, and in those of few features."""


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_kernels_is_found(name: str, tmp_path: Path) -> None:
    """By the laws, as they are."""
    sources = {path.name: path.read_text() for path in emulator.SOURCES.iterdir()}
    for right, wrong, _ in MISTAKES[name]:
        assert sum(right in text for text in sources.values()) == 1
        sources = {file: text.replace(right, wrong) for file, text in sources.items()}
    for file, text in sources.items():
        (tmp_path / file).write_text(text)
    ops = ["sparse_attention-all", "attention-window"]
    laws = ["tests/laws/test_kernels.py", "-k", f"({' or '.join(ops)}) and cuda and float32 and ward"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.gpu.emulator", *laws]
    library = str(emulator.compile(tmp_path))
    environment = os.environ | {"XFN_EMULATED": library, "COLUMNS": "1000"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    for op, (*_, said) in zip(ops, MISTAKES[name], strict=True):
        assert any(f"[{op}" in line and said in line for line in failed), done.stdout
