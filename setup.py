"""The libraries of xfn/csrc: C++, CUDA, and a small one for torch's autograd; all else about the package stands in
pyproject.toml.

Each is built where torch and its compiler, g++ or nvcc, are at hand (``pip install --no-build-isolation``); elsewhere
the package installs without it, and says so. The third is for the release of torch that it is built with, and its file
bears that name: any other does not look for it.
"""

import os
import platform
import subprocess
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from shutil import which

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CPU, CUDA, AUTOGRAD = (
    [*sorted(str(p.relative_to(ROOT)) for p in (ROOT / "xfn/csrc" / kind).iterdir())]
    for kind in ("cpu", "cuda", "autograd")
)
FLAGS = [
    "-std=gnu++20",
    "-O2",  # -O3 takes 1.7 times as long and gives the same speed, but for what the next two bring
    "-fvect-cost-model=dynamic",
    "-funswitch-loops",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
]
FALLBACK = ["-O1", "-ftree-vectorize"] if platform.machine() == "x86_64" else []
"""What `portable.cpp` is built with besides: three quarters of the time, for machines without AVX2, which it slows by a
twentieth. Elsewhere it is all there is."""
NVCC_FLAGS = [
    *("-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden"),
    *("-Werror=all-warnings", "-Xptxas=-warn-spills", "-Xptxas=-warn-lmem-usage"),
]
TARGETS = (80, 90, 100)
"""Architectures that code is made for; the last is put in as PTX too, for those to come."""
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
STABLE = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # what torch 2.11 has, and every later release
LIBRARIES = ["-ltorch", "-ltorch_cpu", "-lc10"]


def find_nvcc() -> str | None:
    """CUDA's compiler: what NVCC names, and nothing else; or in CUDA_HOME, where CUDA puts itself, or on the path."""
    homes = (os.environ.get("CUDA_HOME"), "/usr/local/cuda")
    places = [os.environ["NVCC"]] if "NVCC" in os.environ else [*(f"{home}/bin/nvcc" for home in homes if home), "nvcc"]
    return next((found for place in places if (found := which(place))), None)


def targets(nvcc: str) -> list[int]:
    """Of the architectures those that this nvcc knows."""
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    return [target for target in TARGETS if f"sm_{target}" in known]


def runtime(nvcc: str) -> str:
    """CUDA's runtime as it is linked in, so that the library needs none."""
    home = Path(nvcc).resolve().parent.parent
    found = next(home.rglob("libcudart_static.a"), None)
    if found is None:
        raise FileNotFoundError(f"no libcudart_static.a under {home}")
    return str(found)


class Build(build_ext):
    """Each file for itself, side by side; libraries that no version of Python is part of, and none of torch but one."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = True  # libraries side by side, too

    def get_ext_filename(self, fullname: str) -> str:
        bound = fullname.endswith("_autograd") and find_spec("torch")
        return fullname.replace(".", os.sep) + (f".{version('torch').partition('+')[0]}" if bound else "") + ".so"

    def build_extension(self, extension: Extension) -> None:
        torch, nvcc, cuda = find_spec("torch"), find_nvcc(), extension.name == "xfn._cuda"
        kind = {"xfn._cuda": "CUDA", "xfn._autograd": "autograd"}.get(extension.name, "C++")
        if torch is None or not torch.submodule_search_locations:
            print(f"xfn: no torch in this build, so the {kind} kernels are left out; see python -m xfn.info")
            return
        if cuda and nvcc is None:
            if os.environ.get("XFN_REQUIRE_CUDA"):
                raise OSError("XFN_REQUIRE_CUDA is set, and nvcc is neither in CUDA_HOME nor on the path")
            print("xfn: no nvcc in this build, so the CUDA kernels are left out; see python -m xfn.info")
            return
        home, compiler = Path(next(iter(torch.submodule_search_locations))), os.environ.get("CXX", "g++")
        flags = [*FLAGS, f'-DXFN_VERSION="{VERSION}"', "-isystem", str(home / "include")]
        flags += ["-isystem", str(home / "include/torch/csrc/api/include")] if kind == "autograd" else [STABLE]
        flags += os.environ.get("CXXFLAGS", "").split()
        into, to = Path(self.build_temp), Path(self.get_ext_fullpath(extension.name))
        newest = max(os.path.getmtime(path) for path in [*extension.depends, __file__])
        commands, libraries = {".cpp": [compiler, *flags]}, [f"-L{home / 'lib'}", *LIBRARIES]

        def compile(source: str) -> str:
            made = into / (source.replace(os.sep, ".") + ".o")
            if self.force or not made.exists() or made.stat().st_mtime < max(newest, os.path.getmtime(source)):
                own = FALLBACK if Path(source).name == "portable.cpp" else []
                subprocess.run([*commands[Path(source).suffix], *own, "-c", source, "-o", str(made)], check=True)
            return str(made)

        try:
            if nvcc and cuda:
                known = targets(nvcc)
                codes = [f"-gencode=arch=compute_{t},code=sm_{t}" for t in known]
                commands[".cu"] = [
                    nvcc,
                    *NVCC_FLAGS,
                    *codes,
                    f"-gencode=arch=compute_{known[-1]},code=compute_{known[-1]}",
                ]
                commands[".cpp"].append(f'-DXFN_TARGETS="{" ".join(f"sm_{t}" for t in known)}"')
                libraries += [runtime(nvcc), "-ldl", "-lrt", "-lpthread"]
            for folder in (into, to.parent):
                folder.mkdir(parents=True, exist_ok=True)
            first = lambda source: '"kernels.h"' not in Path(source).read_text()  # those take the longest by far
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            with ThreadPoolExecutor(cores) as pool:
                objects = list(pool.map(compile, sorted(extension.sources, key=first)))
            half = to.with_suffix(".half")  # whoever is stopped here leaves no half of a library
            link = ["-shared", *objects, "-o", str(half), *libraries]
            subprocess.run([compiler, *link, *os.environ.get("LDFLAGS", "").split()], check=True)
            half.replace(to)
        except (OSError, subprocess.CalledProcessError) as error:
            if os.environ.get("XFN_REQUIRE_CUDA" if cuda else "XFN_REQUIRE_CPU"):
                raise
            print(f"xfn: the {kind} kernels could not be built ({error}); plain torch is used instead")


class Wheel(bdist_wheel):
    """For any Python: the libraries know torch alone."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def library(name: str, files: list[str], beside: Sequence[str] = ()) -> Extension:
    """Of these files, and of headers of those. Optional: what is not built is not copied either."""
    sources = [f for f in files if f.endswith((".cpp", ".cu"))]
    depends = [f for f in (*files, *beside) if not f.endswith((".cpp", ".cu"))]
    return Extension(name, sources, depends=depends, optional=True)


if __name__ == "__main__":
    setup(
        ext_modules=[library("xfn._cpu", CPU), library("xfn._cuda", CUDA), library("xfn._autograd", AUTOGRAD, CPU)],
        cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
    )
