"""The CUDA library: loaded when a kernel is first asked for, or refused with a sentence; no GPU is needed for that."""

from functools import cache
from pathlib import Path

import torch

from ..._core.library import texts

PATH = Path(__file__).parent.parent.parent / "_cuda.so"
BUILD = "build it with nvcc, CUDA's compiler: pip install --no-build-isolation ."


@cache
def load() -> tuple[str, str]:
    """The device whose tensors it takes, and what it was built for."""
    device, targets = texts(PATH, BUILD, "xfn_device", "xfn_targets")
    torch.ops.load_library(PATH)
    return device.lower(), targets
