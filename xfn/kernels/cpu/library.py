"""The C++ library: loaded when a kernel is first asked for, or refused with a sentence."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..._core.dispatch import Call
from ..._core.kernel import unframed
from ..._core.library import texts

PATH = Path(__file__).parent.parent.parent / "_cpu.so"
LIBRARY = torch.library.Library("xfn_cpu", "IMPL")
BUILD = "build it with a C++20 compiler: pip install --no-build-isolation ."


RELEASE = torch.__version__.partition("+")[0]


@cache
def autograd() -> str:
    """Loads the library for autograd, or says why there is none: torch's autograd has no stable ABI, so there is a file
    for each release."""
    path = PATH.with_name(f"_autograd.{RELEASE}.so")
    try:
        texts(path, BUILD)
    except ImportError as error:
        return str(error)
    torch.ops.load_library(path)
    return ""


def swift(name: str) -> Any:
    """The op of that library that does the plainest calls without Python, if there is one."""
    return None if autograd() else unframed(getattr(torch.ops.xfn_autograd, name).default)


def detail() -> str:
    """The instruction set, and what is slower than it could be."""
    return f"{isa()}; reverse mode in Python, for {autograd()}" if autograd() else isa()


@cache
def isa() -> str:
    """Loads the library, and names the instruction set of this machine that it uses."""
    (name,) = texts(PATH, BUILD, "xfn_isa")
    if name == "unknown":
        raise ImportError("XFN_ISA names no instruction set: it is one of avx512bf16, avx512, avx2, portable")
    torch.ops.load_library(PATH)
    for op in ("bare", "bare_backward", "forward", "dual", "backward", "jvp", "hvp", "jvp2"):
        LIBRARY.impl(f"attention_{op}", torch.library.fallthrough_kernel, "Autograd")  # autograd ends where they begin
    return name


def supports(call: Call) -> list[str]:
    device = next(iter(call.tensors.values())).device.type
    return [] if device == "cpu" else [f"it runs on the cpu, not on {device}"]
