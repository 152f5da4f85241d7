"""The C++ library as a whole: threads change no bit, every instruction set obeys, and a bad file is refused."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as tree

from xfn import attention, bias, random
from xfn.kernels.cpu.library import PATH

from .levels import LAWS
from .test_fuzz import Problem

ROOT = Path(__file__).parent.parent.parent
SETS = ("avx512bf16", "avx512", "avx2", "portable")

PLAIN = Problem(
    torch.float32, ((300, 2, 40), (300, 2, 40), (300, 2, 24)), ("plain",) * 4, (), (), torch.float32, 0.0, None, 0
)
LONG = {
    "plain": PLAIN,
    "causal": replace(PLAIN, biased=("causal",)),
    "one head": replace(PLAIN, shapes=((700, 1, 16), (300, 1, 16), (300, 1, 16)), biased=("bottom-right",)),
    "grouped": replace(PLAIN, shapes=((2, 300, 6, 20), (300, 2, 20), (2, 300, 2, 7)), biased=("causal",), p=0.3),
    "bias": replace(PLAIN, biased=("dense",), dense=(2, 300, 300)),
    "one bias": replace(PLAIN, shapes=((3, 300, 2, 8), *((3, 300, 1, 8),) * 2), biased=("dense",), dense=(1, 1, 300)),
    "bias of heads": replace(PLAIN, shapes=((3, 200, 4, 8),) * 3, biased=("dense",), dense=(4, 200, 200)),
    "bias of examples": replace(
        PLAIN, shapes=((4, 200, 6, 8), *((4, 200, 2, 8),) * 2), biased=("dense", "causal"), dense=(4, 1, 200, 200)
    ),
    "few heads": replace(PLAIN, shapes=((1100, 1, 8),) * 3, biased=("causal", "dense"), dense=(1, 1100, 1100), p=0.2),
    "window": replace(PLAIN, biased=("local", "alibi")),
    "decoding": replace(PLAIN, shapes=((2, 3, 6, 64), (2, 3000, 3, 64), (2, 3000, 3, 40)), biased=("alibi",), p=0.3),
    "segments": replace(PLAIN, biased=("segments", "mask"), dense=(1, 300, 300)),
    "layout": replace(PLAIN, tiles=(16, 0.3, True, True)),
    "layout and causal": replace(PLAIN, biased=("causal",), p=0.3, tiles=(64, 0.5, False, False)),
}  # fmt: skip


@pytest.fixture
def threads() -> Iterator[None]:
    """Whatever the test asks for, one again behind it."""
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("threads")
@pytest.mark.turns("dtype", "name")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", LONG)
def test_threads_change_no_bit(name: str, dtype: torch.dtype) -> None:
    """With 1, 2 and 4 of them a head's tiles are cut into other tasks, yet all sums keep their order."""
    found = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        found.append(replace(LONG[name], dtype=dtype).family("cpu", dtype))
    for other in found[1:]:
        for member, results in other.items():
            pairs = zip(tree.tree_leaves(results), tree.tree_leaves(found[0][member]), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), member


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("K", [64, 40])
def test_results_past_the_caches_have_the_bits_of_others(dtype: torch.dtype, K: int) -> None:
    """Those of a large batch are written past the caches, those of its examples are not."""
    keys = random.split(random.key(0), 4)
    widths = (K, K, 64, 64)
    q, k, v, dy = (random.normal(key, (11, 800, 8, E), dtype=dtype) for key, E in zip(keys, widths, strict=True))

    def results(q: Tensor, k: Tensor, v: Tensor, dy: Tensor) -> list[Tensor]:
        inputs = [t.detach().requires_grad_() for t in (q, k, v)]
        out = attention(*inputs, bias.local(8, 0), backend="cpu")
        return [out.detach(), *torch.autograd.grad(out, inputs, dy)]

    large = results(q, k, v, dy)
    small = [results(*one) for one in zip(q, k, v, dy, strict=True)]
    assert all(t.nbytes >= 4 << 20 and t[0].nbytes < 4 << 20 for t in large)
    assert all(torch.equal(t, torch.stack(each)) for t, each in zip(large, zip(*small, strict=True), strict=True))


def python(*arguments: str, **environment: str) -> str:
    """What another Python prints; it may not fail, let alone crash."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=os.environ | environment
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("law", LAWS)
def test_every_instruction_set_equals_the_reference(law: str, pytestconfig: pytest.Config) -> None:
    """On the problems of every ``test_fuzz``, under ``--brief`` but for the largest: this machine's best set too, so
    that where this is run, those need not be."""
    brief = ["--brief"] if pytestconfig.option.brief else []
    used = python("-m", "tests.laws.levels", law, *SETS, *brief).split()
    assert len(used) == len(SETS)
    assert all(SETS.index(found) >= SETS.index(name) for name, found in zip(SETS, used, strict=True)), used
    if missing := [name for name in SETS if name not in used]:
        pytest.skip(f"this machine has no {' '.join(missing)}; what it has equals the reference")


# A library that cannot be used: info says why, and so does the call that names it; all other calls go elsewhere.

PROGRAM = """
import os, pathlib, sys, torch, xfn
from xfn.info import lines
from xfn.kernels.cpu import library
from xfn._core.errors import Unsupported

def refused(path):
    library.PATH = pathlib.Path(path)
    one = torch.ones(3, 1, 1)
    assert torch.equal(xfn.attention(one, one, one), one)
    try:
        xfn.attention(one, one, one, backend="cpu")
    except Unsupported as error:
        refusal, = (line for line in str(error).splitlines() if "cpu:" in line)
    why = refusal.partition("imported: ")[2]
    assert why and any(line.endswith(f"no: {why}") for line in lines())
    print(why, flush=True)

for path in sys.argv[1:]:  # each in a fork, for a process asks once
    child = os.fork()
    if not child:
        refused(path)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, path
"""


def test_a_missing_library_is_refused(tmp_path: Path) -> None:
    assert "_cpu.so is not there; build it" in python("-c", PROGRAM, str(tmp_path / "_cpu.so"))


def test_half_a_library_is_refused(tmp_path: Path) -> None:
    """Wherever it was cut off; the system's loader alone would die of most."""
    whole, parts = PATH.read_bytes(), (0.0, 0.001, 0.1, 0.5, 0.9, 0.999)
    halves = [tmp_path / f"{part}.so" for part in parts]
    for part, half in zip(parts, halves, strict=True):
        half.write_bytes(whole[: int(len(whole) * part)])
    said = python("-c", PROGRAM, *map(str, halves)).splitlines()
    assert len(said) == len(parts)
    assert all("build it with a C++20 compiler" in line for line in said)


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "_cpu.so"
    text.write_text("#!/bin/sh\n" * 100)
    assert "_cpu.so does not load" in python("-c", PROGRAM, str(text))


def test_a_library_of_another_kind_is_refused() -> None:
    other = next((Path(torch.__file__).parent / "lib").glob("libc10.*"))
    assert "does not load" in python("-c", PROGRAM, str(other))


def test_a_library_of_another_version_is_refused(tmp_path: Path) -> None:
    own, past = version("xfn"), "9" * len(version("xfn"))
    other = tmp_path / "_cpu.so"
    other.write_bytes(PATH.read_bytes().replace(f"{own}\0".encode(), f"{past}\0".encode()))
    assert f"_cpu.so is of xfn {past}, and this is {own}; build it" in python("-c", PROGRAM, str(other))


def test_an_unknown_instruction_set_is_refused() -> None:
    wanted = f"XFN_ISA names no instruction set: it is one of {', '.join(SETS)}"
    assert wanted in python("-c", PROGRAM, str(PATH), XFN_ISA="sse9")
    assert f"cpu        no: {wanted}" in python("-m", "xfn.info", XFN_ISA="sse9")
