"""Where the laws run: on the CPU, or under ``-m gpu`` on a GPU.

``conftest.py`` says so before a test is collected. What tests make without a word of a device is then made there; what
the library makes is left alone, so that a device which it forgets shows.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from xfn import random

DEVICE = torch.device("cpu")
gpu: pytest.MarkDecorator = pytest.mark.gpu
"""Marks what also runs on a GPU."""

MAKERS = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "tensor", "zeros")


def why_not() -> str:
    """Why there is no GPU here; nothing where there is one."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return "" if torch.cuda.is_available() else "torch finds no GPU"


def settle(device: torch.device) -> None:
    """From now on tests are at home there."""
    global DEVICE
    DEVICE = device
    importlib.import_module("torch._decomp.decompositions_for_jvp")  # scripts what calls the makers, as torch has them
    for name in MAKERS:
        setattr(torch, name, moved(getattr(torch, name), device))
    random.key = moved(random.key, device)


def moved(make: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """Drawn on the CPU, so that a seed gives the same numbers everywhere."""

    def made(*args: Any, **kwargs: Any) -> Tensor:
        t = make(*args, **kwargs)
        if torch.compiler.is_compiling() or "device" in kwargs:
            return t
        return t.to(device) if sys._getframe(1).f_globals["__name__"].startswith("tests.") else t

    return made
