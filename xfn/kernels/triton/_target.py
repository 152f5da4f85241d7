"""What kernels run on, and how exactly it multiplies."""

import torch
from triton import knobs
from triton.runtime import driver

INTERPRETED = bool(knobs.runtime.interpret)
"""Whether Triton interprets its kernels on the CPU, as it was told before it was imported."""
DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)


def in_groups() -> bool:
    """Whether groups of warps multiply tiles of 64 rows out of shared memory, of which there is more."""
    if INTERPRETED:
        return False
    target = driver.active.get_current_target()
    return target.backend == "cuda" and target.arch // 10 in (9, 10)


def precision() -> str:
    """Of products of float32, as torch was told for its own."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
