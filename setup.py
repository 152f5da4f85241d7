"""The C++ extension, from xfn/csrc; all else about the package stands in pyproject.toml."""

from glob import glob
from typing import Any

from setuptools import setup

sources = sorted(glob("xfn/csrc/*.cpp") + glob("xfn/csrc/cpu/*.cpp"))


def extension() -> dict[str, Any]:
    """One library from all sources; without a compiler the package installs without it, and says so."""
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    library = CppExtension("xfn._C", sources, include_dirs=["xfn/csrc"], extra_compile_args=["-O3"], optional=True)
    return {"ext_modules": [library], "cmdclass": {"build_ext": BuildExtension}}


setup(**(extension() if sources else {}))
