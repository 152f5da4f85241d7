"""The CUDA library as nvcc made it: what it says of itself, what it refuses, and when there is none. No kernel runs."""

import inspect
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from setup import NVCC_FLAGS, find_nvcc
from xfn._core.dispatch import Call, module, reasons
from xfn._core.member import Member
from xfn._core.primitive import Primitive
from xfn.info import primitives
from xfn.kernels.cuda import library

from ..laws.test_cpu import python
from ..laws.test_kernels import Arguments

NVCC = find_nvcc()
pytestmark = pytest.mark.skipif(NVCC is None, reason="NO NVCC HERE: the CUDA kernels are not compiled for any GPU")

RESULTS = {
    "forward": ["out", "lse"],
    "queries": ["delta", "dq"],
    "keys": ["dk", "dv"],
    "between": ["values"],
    "mix": ["out"],
    "softmax": ["out"],
    "attend_forward": ["out", "lse"],
    "attend_queries": ["delta", "dq", "shifts"],
    "attend_keys": ["dk", "dv"],
}


def test_where_nvcc_is_the_library_was_built() -> None:
    """With warnings, spilt registers and local memory as errors; it loads, though no driver is here."""
    sources = library.PATH.parent / "csrc" / "cuda"
    assert library.PATH.exists()
    assert library.PATH.stat().st_mtime >= max(path.stat().st_mtime for path in sources.iterdir())
    device, targets = library.load()
    assert device == "cuda"
    assert set(targets.split()) <= {"sm_80", "sm_90", "sm_100"}
    assert "sm_80" in targets


@pytest.mark.parametrize("name", RESULTS)
def test_an_op_writes_its_results_alone(name: str) -> None:
    library.load()
    schema = getattr(torch.ops.xfn_cuda, name).default._schema
    assert [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write] == RESULTS[name]
    assert schema.returns == []


def test_tensors_of_the_cpu_are_refused() -> None:
    library.load()
    values = torch.zeros(1, 1, 1)
    with pytest.raises(NotImplementedError, match="Could not run 'xfn_cuda::softmax'"):
        torch.ops.xfn_cuda.softmax(values, torch.ones(1, 1, 1, dtype=torch.int32), values, 0)


FAMILIES = [
    pytest.param(primitive, cases[0], member, id=f"{primitive.name}-{member.member}")
    for primitive, cases in primitives()
    if "cuda" in primitive.backends
    for member in primitive.family
]


@pytest.mark.parametrize(("primitive", "case", "member"), FAMILIES)
def test_the_family_knows_its_shapes(primitive: Primitive, case: Any, member: Member) -> None:
    """On tensors of a GPU that is not there."""
    at = Arguments(primitive, case, torch.bfloat16)
    groups = at.of(member)
    want = at.run(getattr(primitive.composite, member.member), member, groups, at.needs)
    with FakeTensorMode():
        there = [[None if t is None else torch.empty(t.shape, dtype=t.dtype, device="cuda") for t in g] for g in groups]
        found = member(*there, options=(*at.options.values(), "cuda"), needs=at.needs)
    got = [t for t in found if t is not None]
    assert [(t.shape, t.dtype, t.device.type) for t in got] == [(t.shape, t.dtype, "cuda") for t in want]


def test_reasons_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    products = inspect.getmodule(module("cuda", "sparse_attention").supports)
    monkeypatch.setattr(products, "_capable", lambda device: device.index == 0)

    def against(
        device: str, dtype: torch.dtype, features: int, op: str = "sparse_attention", dense: bool = False
    ) -> list[str]:
        with FakeTensorMode():
            q = torch.empty(2, 3, features, dtype=dtype, device=device)
        return reasons("cuda", Call(op, "forward", {"q": q, "k": q, "v": q, "dense": q if dense else None}, {}))

    assert against("cpu", torch.float32, 8) == ["it runs on cuda, not on cpu"]
    assert against("cuda:0", torch.float64, 8) == ["float64 is not float32, bfloat16 or float16"]
    assert against("cuda:0", torch.float16, 1025) == ["1025 features are more than 1024"]
    assert against("cuda:0", torch.bfloat16, 1024) == []
    assert against("cuda:0", torch.bfloat16, 33, "attention") == ["33 features are more than 32"]
    assert against("cuda:0", torch.float16, 32, "attention") == []
    assert against("cuda:0", torch.float32, 8, "attention", dense=True) == ["it adds no dense bias"]
    assert against("cuda:1", torch.float32, 8) == ["it needs compute capability 8.0, which this device has not"]


# A library that cannot be used: info says why, and so does the call that names it; all other calls go elsewhere.

PROGRAM = """
import pathlib, sys, torch, xfn
from xfn._core.errors import Unsupported
from xfn.info import lines
from xfn.kernels.cuda import library
from xfn.sparsity import Csr

library.PATH = pathlib.Path(sys.argv[1])
one, csr = torch.ones(1, 1, 1), Csr.from_mask(torch.ones(1, 1, dtype=torch.bool))
assert torch.equal(xfn.sparse_attention(csr, one, one, one), one)
try:
    xfn.sparse_attention(csr, one, one, one, backend="cuda")
except Unsupported as error:
    refusal, = (line for line in str(error).splitlines() if "cuda:" in line)
why = refusal.partition("imported: ")[2]
assert why and any(line.endswith(f"no: {why}") for line in lines())
print(why)
"""


def test_a_missing_library_is_refused(tmp_path: Path) -> None:
    assert "_cuda.so is not there; build it with nvcc" in python("-c", PROGRAM, str(tmp_path / "_cuda.so"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda whole: whole[: len(whole) // 2], "_cuda.so is cut short; build it with nvcc"),
        (lambda whole: b"#!/bin/sh\n", "_cuda.so does not load"),
        (lambda whole: whole.replace(b"xfn_targets", b"xfn_stegrat"), "_cuda.so does not load"),
    ],
    ids=["half", "text", "foreign"],
)
def test_what_is_no_library_is_refused(change: Any, why: str, tmp_path: Path) -> None:
    other = tmp_path / "_cuda.so"
    other.write_bytes(change(library.PATH.read_bytes()))
    assert why in python("-c", PROGRAM, str(other))


# What nvcc is told to refuse.

SPILLS = """
__global__ void __launch_bounds__(1024) kernel(float* x) {
  float held[128];
#pragma unroll
  for (int i = 0; i < 128; i++) held[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 128; i++) x[i * 1024 + threadIdx.x] = held[127 - i] * held[i];
}
"""
WARNS = "__global__ void kernel(float* x) { int unused = 3; x[0] = 0; }"
NEITHER = "__global__ void kernel(float* x) { x[threadIdx.x] = 0; }"


@pytest.mark.parametrize(
    ("text", "said"),
    [(SPILLS, "spilled"), (WARNS, "never referenced"), (NEITHER, "")],
    ids=["spills", "warns", "neither"],
)
def test_a_kernel_that_spills_or_warns_is_refused(text: str, said: str, tmp_path: Path) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text(text)
    command = [str(NVCC), *NVCC_FLAGS, "-arch=sm_80", "-c", str(source), "-o", str(tmp_path / "kernel.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert bool(done.returncode) == bool(said), done.stdout + done.stderr
    assert said in done.stdout + done.stderr
