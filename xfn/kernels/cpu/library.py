"""The C++ library: loaded when a kernel is first asked for, or refused with a sentence."""

import ctypes
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

PATH = Path(__file__).parent.parent.parent / "_cpu.so"
BUILD = "build it with a C++20 compiler: pip install --no-build-isolation ."


@cache
def isa() -> str:
    """Loads the library, and names the instruction set of this machine that it uses."""
    if not PATH.exists():
        raise ImportError(f"{PATH.name} is not there; {BUILD}")
    try:
        library = ctypes.CDLL(str(PATH))
        made, name = (_text(library, symbol) for symbol in ("xfn_version", "xfn_isa"))
    except (OSError, AttributeError) as error:
        raise ImportError(f"{PATH.name} does not load ({str(error).splitlines()[0]}); {BUILD}") from error
    if made != version("xfn"):
        raise ImportError(f"{PATH.name} is of xfn {made}, and this is {version('xfn')}; {BUILD}")
    if name == "unknown":
        raise ImportError("XFN_ISA names no instruction set: it is one of avx512bf16, avx512, avx2, portable")
    torch.ops.load_library(PATH)
    return name


def _text(library: ctypes.CDLL, symbol: str) -> str:
    function = getattr(library, symbol)
    function.restype = ctypes.c_char_p
    text: bytes = function()
    return text.decode()
