"""Triton's kernels compiled for a GPU that is not there: whatever is launched is compiled and looked at instead."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import pytest
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver
from triton.runtime.jit import JITFunction

SHARED = {80: 101376, 90: 232448, 100: 232448}
"""Bytes of shared memory that a program may have, by architecture, of 8.x the least; Triton asks only when it loads a
kernel."""

SERIAL = re.compile(r"\((C75\d\d)\)")
"""What the assembler says where each product of a warp group waits for the one before it, and by its number why."""
STARTED = "C7515", ("forward", "bend")
"""The reason that a sum is begun by what is no product, and the kernels where at some tiles that is known and left."""


@dataclass(frozen=True)
class Compiled:
    """What became of one kernel."""

    name: str
    strict: bool
    registers: int
    spilt: int
    shared: int
    serial: frozenset[str]
    kernel: Any = field(repr=False)

    def against(self, architecture: int, spill: int) -> list[str]:
        """What forbids to ship it."""
        waits = self.serial - {STARTED[0]} if self.name in STARTED[1] else self.serial
        found = {
            f"{self.shared} bytes of shared memory are more than {SHARED[architecture]}": SHARED[architecture]
            < self.shared,
            f"{self.spilt} bytes spilt are more than {spill}": self.spilt > spill,
            f"its products wait for one another, {sorted(waits)}": bool(waits) and not self.strict,
        }
        return [f"{self.name}{' strict' * self.strict}: {why}" for why, holds in found.items() if holds]


class Driver:
    """As much of a GPU as a compiler asks after."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling(architecture: int, strict: bool = True) -> Iterator[list[Compiled]]:
    """Every launch inside is a compilation, the first of its kind at least; they are listed. But for those that are
    ``STRICT``, if that is not asked for."""
    found: dict[str, Compiled] = {}
    run: Callable[..., Any] = JITFunction.run
    assemble: Callable[..., Any] = CUDABackend.make_cubin

    def compile(self: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> Any:
        if constants.get("STRICT") and not strict:
            return None
        kernel = run(self, *args, grid=grid, warmup=True, **constants)
        if kernel.hash not in found:
            found[kernel.hash] = looked_at(kernel, self.__name__, bool(constants.get("STRICT")))
        return kernel

    def keep_log(self: Any, src: Any, metadata: Any, *rest: Any) -> Any:
        with redirect_stdout(StringIO()) as said:
            made = assemble(self, src, metadata, *rest)
        metadata["said"] = said.getvalue()
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_active", Driver(architecture))
        patch.setattr(JITFunction, "run", compile)
        patch.setattr(CUDABackend, "make_cubin", keep_log)
        patch.setattr(knobs.nvidia, "dump_ptxas_log", True)
        listed: list[Compiled] = []
        yield listed
    listed += found.values()


def looked_at(kernel: Any, name: str, strict: bool) -> Compiled:
    """What the assembler said of a kernel, which stays with it in Triton's cache."""
    said = kernel.metadata.said
    count = lambda pattern: sum(map(int, re.findall(pattern, said)))
    registers, spilt = count(r"Used (\d+) registers"), count(r"(\d+) bytes stack frame")
    return Compiled(name, strict, registers, spilt, kernel.metadata.shared, frozenset(SERIAL.findall(said)), kernel)
