"""The C++ library, from xfn/csrc; all else about the package stands in pyproject.toml.

It is built where torch and a compiler are at hand (``pip install --no-build-isolation``); elsewhere the package
installs without it, says so, and runs on plain torch.
"""

import os
import subprocess
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SOURCES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("xfn/csrc/**/*.cpp"))
HEADERS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("xfn/csrc/**/*.h"))
FLAGS = [
    "-std=gnu++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
STABLE = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # what torch 2.11 has, and every later release
LIBRARIES = ["-ltorch", "-ltorch_cpu", "-lc10"]


class Build(build_ext):
    """Each file for itself, side by side; one library that no version of Python or torch is part of."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, extension: Extension) -> None:
        torch = find_spec("torch")
        if torch is None or not torch.submodule_search_locations:
            print("xfn: no torch in this build, so the C++ kernels are left out; see python -m xfn.info")
            return
        home, compiler = Path(next(iter(torch.submodule_search_locations))), os.environ.get("CXX", "g++")
        flags = [
            *FLAGS,
            STABLE,
            f'-DXFN_VERSION="{VERSION}"',
            "-isystem",
            str(home / "include"),
            *os.environ.get("CXXFLAGS", "").split(),
        ]
        into, to = Path(self.build_temp), Path(self.get_ext_fullpath(extension.name))
        newest = max(os.path.getmtime(path) for path in [*HEADERS, __file__])

        def compile(source: str) -> str:
            made = into / (source.replace(os.sep, ".") + ".o")
            if self.force or not made.exists() or made.stat().st_mtime < max(newest, os.path.getmtime(source)):
                subprocess.run([compiler, *flags, "-c", source, "-o", str(made)], check=True)
            return str(made)

        try:
            for folder in (into, to.parent):
                folder.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(compile, SOURCES))
            half = to.with_suffix(".half")  # whoever is stopped here leaves no half of a library
            link = ["-shared", *objects, "-o", str(half), f"-L{home / 'lib'}", *LIBRARIES]
            subprocess.run([compiler, *link, *os.environ.get("LDFLAGS", "").split()], check=True)
            half.replace(to)
        except (OSError, subprocess.CalledProcessError) as error:
            if os.environ.get("XFN_REQUIRE_CPU"):
                raise
            print(f"xfn: the C++ kernels could not be built ({error}); plain torch is used instead")


setup(ext_modules=[Extension("xfn._cpu", SOURCES)], cmdclass={"build_ext": Build})
