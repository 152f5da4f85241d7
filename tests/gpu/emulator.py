"""CUDA kernels on the CPU: their sources, compiled by a C++ compiler for the machine in ``device/``.

Loaded with ``-p tests.gpu.emulator`` before any kernel. The library takes tensors of the CPU then; each launch gets
copies of what it reads, which lie apart, and is told what it may read and what it may write.
"""

import ctypes
import fcntl
import hashlib
import os
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent.parent
SOURCES, DEVICE, BUILD = ROOT / "xfn" / "csrc" / "cuda", ROOT / "tests" / "gpu" / "device", ROOT / "build" / "emulated"
FLAGS = ["-std=gnu++20", "-O1", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-Wno-unknown-pragmas"]
WATCHED = ["-fsanitize=thread", "-x", "c++"]
"""What makes a kernel ask the machine about every access."""


def compile(sources: Path, into: Path) -> Path:
    """The library of all CUDA sources in a folder, and of torch ops if it has them; built once for what they say."""
    from torch.utils.cpp_extension import include_paths, library_paths

    files = sorted(p for folder in (sources, DEVICE) for p in folder.iterdir())
    said = hashlib.sha256(b"".join(p.read_bytes() for p in [*files, Path(__file__)]) + torch.__version__.encode())
    made = into / said.hexdigest()[:16] / "_cuda.so"
    made.parent.mkdir(parents=True, exist_ok=True)
    with (made.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists():
            return made
        includes = [*("-isystem" + p for p in include_paths()), f"-I{DEVICE}"]
        told = ["-DXFN_DEVICE=CPU", f'-DXFN_VERSION="{version("xfn")}"', '-DXFN_TARGETS="emulated"']
        stable = "-DTORCH_TARGET_VERSION=0x020b000000000000"
        running, objects = [], []
        for path in (p for p in files if p.suffix in (".cu", ".cpp")):
            objects.append(str(made.parent / (path.name + ".o")))
            watched = WATCHED if path.suffix == ".cu" else []
            command = ["g++", *FLAGS, *watched, *told, stable, *includes, "-c", str(path), "-o", objects[-1]]
            running.append(subprocess.Popen(command))
        assert not any(process.wait() for process in running), "the sources do not compile"
        half = made.with_suffix(".half")
        libraries = [*("-L" + p for p in library_paths()), "-ltorch", "-ltorch_cpu", "-lc10"]
        subprocess.run(["g++", "-shared", *objects, "-o", str(half), *libraries], check=True)
        half.replace(made)
    return made


def apart(t: Tensor) -> Tensor:
    """The same numbers by the same strides, in memory of its own with others around that nobody wrote."""
    if not t.numel():
        return t
    span = 1 + sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True))
    storage = torch.full((span + 64,), torch.nan if t.is_floating_point() else -(1 << 30), dtype=t.dtype)
    start = 32 + (t.data_ptr() - storage.data_ptr()) % 16 // t.element_size()
    copy = storage.as_strided(t.shape, t.stride(), start)
    copy.as_strided((span,), (1,), start).copy_(t.as_strided((span,), (1,)))
    return copy


class Guarded:
    """An op whose launches are told what they may touch."""

    def __init__(self, op: Any, library: ctypes.CDLL) -> None:
        self.op, self.library = op, library
        alias = [a.alias_info for a in op.default._schema.arguments]
        self.writes = [a is not None and a.is_write for a in alias]

    def __call__(self, *args: Any) -> None:
        given = [t if w or not isinstance(t, Tensor) else apart(t) for t, w in zip(args, self.writes, strict=True)]
        try:
            for t, writes in zip(given, self.writes, strict=True):
                if isinstance(t, Tensor) and t.numel():
                    self.allow(t, writes)
            self.op(*given)
        finally:
            self.library.machine_forget()

    def allow(self, t: Tensor, writes: bool) -> None:
        span = 1 + sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True))
        self.library.machine_allow(ctypes.c_void_p(t.data_ptr()), ctypes.c_size_t(span * t.element_size()), writes)


def install(path: Path, names: Sequence[str] = ("forward", "queries", "keys", "between", "mix", "softmax")) -> None:
    """Makes this library the CUDA library of the process."""
    from xfn.kernels.cuda import library

    library.PATH = path
    library.load()
    machine, ops = ctypes.CDLL(str(path)), torch.ops.xfn_cuda
    for name in names:
        setattr(ops, name, Guarded(getattr(ops, name), machine))


install(Path(os.environ.get("XFN_EMULATED") or compile(SOURCES, BUILD)))
