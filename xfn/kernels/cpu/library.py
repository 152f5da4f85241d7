"""The C++ library: loaded when a kernel is first asked for, or refused with a sentence."""

import ctypes
import struct
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

PATH = Path(__file__).parent.parent.parent / "_cpu.so"
LIBRARY = torch.library.Library("xfn_cpu", "IMPL")
BUILD = "build it with a C++20 compiler: pip install --no-build-isolation ."


@cache
def isa() -> str:
    """Loads the library, and names the instruction set of this machine that it uses."""
    if not PATH.exists():
        raise ImportError(f"{PATH.name} is not there; {BUILD}")
    if not _whole(PATH):
        raise ImportError(f"{PATH.name} is cut short; {BUILD}")
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
    for op in ("bare", "bare_backward", "forward", "backward", "jvp", "hvp", "jvp2"):
        LIBRARY.impl(f"attention_{op}", torch.library.fallthrough_kernel, "Autograd")  # autograd ends where they begin
    return name


def _whole(path: Path) -> bool:
    """Whether the table of sections, the last thing in an ELF file, is there: the loader dies of half a file."""
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or head[:5] != b"\x7fELF\x02":
        return True  # no such file, as the loader can tell
    (table,), (size, count) = struct.unpack_from("=Q", head, 40), struct.unpack_from("=HH", head, 58)
    return bool(table + size * count <= path.stat().st_size)


def _text(library: ctypes.CDLL, symbol: str) -> str:
    function = getattr(library, symbol)
    function.restype = ctypes.c_char_p
    text: bytes = function()
    return text.decode()
