"""Triton's kernels compiled for a GPU that is not there: whatever is launched is compiled and looked at instead."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

SHARED = {80: 166912, 90: 232448, 100: 232448}
"""Bytes of shared memory that a program may have, by architecture; Triton asks only when it loads a kernel."""

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Compiled:
    """What became of one kernel."""

    name: str
    strict: bool
    registers: int
    spilt: int
    shared: int

    def against(self, architecture: int, spill: int) -> list[str]:
        """What forbids to ship it."""
        found = {
            f"{self.shared} bytes of shared memory are more than {SHARED[architecture]}": SHARED[architecture]
            < self.shared,
            f"{self.spilt} bytes spilt are more than {spill}": self.spilt > spill,
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
def compiling(architecture: int) -> Iterator[list[Compiled]]:
    """Every launch inside is a compilation, the first of its kind at least; they are listed."""
    found: dict[str, Compiled] = {}
    run: Callable[..., Any] = JITFunction.run

    def compile(self: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **constants)
        if kernel.hash not in found:
            found[kernel.hash] = looked_at(kernel, self.__name__, bool(constants.get("STRICT")))
        return kernel

    before = driver._active
    driver.set_active(Driver(architecture))
    JITFunction.run = compile
    listed: list[Compiled] = []
    try:
        yield listed
    finally:
        JITFunction.run = run
        driver._active = before
        listed += found.values()


def looked_at(kernel: Any, name: str, strict: bool) -> Compiled:
    """What the assembler made of a kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        listing = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True)
    counts = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing.stdout)}
    return Compiled(name, strict, counts["REG"], counts["STACK"] + counts["LOCAL"], kernel.metadata.shared)
