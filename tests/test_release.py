"""What is released: a wheel that runs without a compiler and says what it lacks, and sources to build the rest from."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "xfn")
BARE = {"CXX": "no-compiler", "NVCC": "no-compiler"}


def run(*words: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sources, made where there is no compiler."""
    tree = tmp_path_factory.mktemp("tree")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / part, tree / part)
    run("setup.py", "--quiet", "sdist", "bdist_wheel", cwd=tree, **BARE)
    (wheel,), (sources,) = (tree / "dist").glob("*.whl"), (tree / "dist").glob("*.tar.gz")
    return wheel, sources


def test_the_wheel_is_for_any_python(released: tuple[Path, Path]) -> None:
    wheel, _ = released
    assert wheel.name.split("-")[2:4] == ["py3", "none"]
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    assert {Path(name).suffix for name in names if name.startswith("xfn/")} == {".py", ".typed"}
    own = {p.relative_to(ROOT).as_posix() for p in (ROOT / "xfn").rglob("*.py")}
    assert own == {name for name in names if name.endswith(".py")}


def test_it_runs_without_a_compiler_and_says_what_it_lacks(released: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(released[0]) as packed:
        packed.extractall(tmp_path)
    said = run("-m", "xfn.info", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert "cpu        no: _cpu.so is not there; build it with" in said
    assert "values and gradients are right" in said


def test_the_sources_are_whole(released: tuple[Path, Path]) -> None:
    with tarfile.open(released[1]) as sources:
        names = {name.partition("/")[2] for name in sources.getnames()}
    kept = [p for p in (ROOT / "xfn").rglob("*") if p.suffix in (".py", ".h", ".cpp", ".cu", ".cuh", ".typed")]
    assert {p.relative_to(ROOT).as_posix() for p in kept} <= names
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names
