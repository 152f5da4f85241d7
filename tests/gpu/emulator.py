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
STABLE = "-DTORCH_TARGET_VERSION=0x020b000000000000"


def compile(sources: Path) -> Path:
    """The library of all CUDA sources in a folder, with its torch ops; what was made once is there for the next one."""
    from torch.utils.cpp_extension import include_paths, library_paths

    files = sorted(p for folder in (sources, DEVICE) for p in folder.iterdir())
    parts = [p for p in files if p.suffix in (".cu", ".cpp")]
    told = [
        "-DXFN_BLOCKS=3",
        "-DXFN_DEVICE=CPU",
        f'-DXFN_VERSION="{version("xfn")}"',
        '-DXFN_TARGETS="emulated"',
        STABLE,
    ]
    common = ["g++", *FLAGS, *told, *("-isystem" + p for p in include_paths()), f"-I{DEVICE}"]

    def object_of(part: Path) -> Path:
        """Named by all that it is made of: a kernel's headers are none of a file of C++."""
        kinds = (".h", ".cuh") if part.suffix == ".cu" else (".h",)
        texts = [p.read_bytes() for p in files if p == part or p.suffix in kinds]
        how = f"{common}{WATCHED}{torch.__version__}".encode()
        return BUILD / f"{part.name}-{hashlib.sha256(b''.join([*texts, how])).hexdigest()[:16]}.o"

    objects = [object_of(part) for part in parts]
    made = BUILD / hashlib.sha256(str(objects).encode()).hexdigest()[:16] / "_cuda.so"
    made.parent.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists():
            return made
        running = {}
        for path, to in zip(parts, objects, strict=True):
            if not to.exists():
                watched = WATCHED if path.suffix == ".cu" else []
                running[to] = subprocess.Popen([*common, *watched, "-c", str(path), "-o", f"{to}.half"])
        assert not [to for to, process in running.items() if process.wait()], "the sources do not compile"
        for to in running:
            Path(f"{to}.half").replace(to)
        libraries = [*("-L" + p for p in library_paths()), "-ltorch", "-ltorch_cpu", "-lc10"]
        half = made.with_suffix(".half")
        subprocess.run(["g++", "-shared", *map(str, objects), "-o", str(half), *libraries], check=True)
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


NAMES = ["forward", "queries", "keys", "between", "mix", "softmax", "attend_forward", "attend_queries", "attend_keys"]


def install(path: Path, names: Sequence[str] = NAMES) -> None:
    """Makes this library the CUDA library of the process."""
    from xfn.kernels.cuda import library

    library.PATH = path
    library.load()
    machine, ops = ctypes.CDLL(str(path)), torch.ops.xfn_cuda
    for name in names:
        setattr(ops, name, Guarded(getattr(ops, name), machine))


if __name__ != "__main__":  # python -m tests.gpu.emulator compiles, and no more
    install(Path(os.environ.get("XFN_EMULATED") or compile(SOURCES)))
else:
    compile(SOURCES)
