"""What kernels run on."""

from triton import knobs

INTERPRETED = bool(knobs.runtime.interpret)
"""Whether Triton interprets its kernels on the CPU, as it was told before it was imported."""
DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)
