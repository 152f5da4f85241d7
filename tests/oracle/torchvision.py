"""timm without torchvision, of which it imports names for pictures alone, and whose own builds want another torch."""

import sys
from types import ModuleType
from typing import Any

import pytest


class Names(type):
    """A class of which every attribute is such a class."""

    def __getattr__(cls, name: str) -> "Names":
        if name.startswith("__"):
            raise AttributeError(name)
        return Names(name, (), {})


class Absent(ModuleType):
    """A module that has whatever is imported from it."""

    __getattr__ = Names.__getattr__


NAMES = [
    f"torchvision{part}" for part in ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional", ".datasets")
]


def timm() -> Any:
    """timm itself; what stood in for torchvision is gone when it is imported."""
    sys.modules |= {name: Absent(name) for name in NAMES}
    try:
        return pytest.importorskip("timm", reason="timm is not installed: make oracle installs it")
    finally:
        for name in NAMES:
            del sys.modules[name]
