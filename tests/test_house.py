"""The house stays in order: floors, private names, public surface, documentation, lengths, and tests that compare."""

import ast
import importlib
import inspect
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import xfn

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "xfn").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
OTHERS = sorted(p for folder in ("examples", "benchmarks") for p in (ROOT / folder).rglob("*.py"))

FLOORS = {
    "_core": 0, "activations": 1, "random": 1, "bias": 1, "layout": 1, "sparsity": 1, "patterns": 1, "kernels": 1,
    "ops": 2, "parts": 3, "factory": 4, "compat": 5, "nn": 5, "plot": 5, "info": 5, "__init__": 6,
}  # fmt: skip
PEERS = {
    ("ops", "ops"),
    ("_core", "_core"),
    ("patterns", "patterns"),
    ("patterns", "random"),
    ("parts", "parts"),
    ("factory", "factory"),
    ("nn", "nn"),
    ("compat", "compat"),
    ("layout", "layout"),
    ("layout", "random"),
    ("layout", "patterns"),
}
LENGTHS = {"_core": 250, "ops": 250, "kernels": 400, "tests": 400}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


every_source = pytest.mark.parametrize("path", SOURCES, ids=name)


def room(parts: tuple[str, ...]) -> str:
    """The room of a module, from its path inside the package."""
    return parts[0] if parts else "__init__"


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """The modules inside the package that a file imports, as paths."""
    package = ("xfn", *path.relative_to(ROOT / "xfn").with_suffix("").parts[:-1])
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            full = (*base, *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                found = (*full, alias.name)
                if found[0] == "xfn" and found[1:2] != ("__version__",):
                    yield found[1:]
        elif isinstance(node, ast.Import):
            yield from (tuple(a.name.split("."))[1:] for a in node.names if a.name.split(".")[0] == "xfn")


@every_source
def test_a_file_imports_from_the_floors_below(path: Path) -> None:
    inside = path.relative_to(ROOT / "xfn").with_suffix("").parts
    own = room(inside)
    for target in imported(path):
        other = room(target)
        assert (own, other) in PEERS or FLOORS[other] < FLOORS[own] or _same_kernels(inside, target), (
            f"{name(path)} is on floor {FLOORS[own]} and imports {'.'.join(target)} on floor {FLOORS[other]}"
        )


def _same_kernels(inside: tuple[str, ...], target: tuple[str, ...]) -> bool:
    """Kernels of one language may share files; no kernel imports another language's."""
    return inside[0] == target[0] == "kernels" and inside[1] == target[1]


@every_source
def test_torch_is_entered_by_its_front_door(path: Path) -> None:
    """Private names of torch, and autograd Functions, each have one file."""
    allowed = {"xfn/_core/kernel.py", "xfn/_core/levels.py", "xfn/_core/pytree.py"}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            private = [p for p in (*(node.module or "").split("."), *(a.name for a in node.names)) if p.startswith("_")]
            assert not private or name(path) in allowed, f"{name(path)} imports torch's private {private}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            private = [node.attr] if node.attr.startswith("_") and not node.attr.endswith("__") else []
            assert not private or name(path) in allowed, f"{name(path)} uses torch.{node.attr}"
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Function") for base in node.bases):
            assert name(path) in {"xfn/_core/kernel.py", "xfn/ops/recompute.py", "xfn/ops/reversible.py"}


@every_source
def test_other_packages_are_imported_when_they_are_asked_for(path: Path) -> None:
    allowed = sys.stdlib_module_names | {"torch"} | ({"triton"} if "kernels" in path.parts else set())
    for node in tree(path).body:
        found = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        found += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert {n.split(".")[0] for n in found} <= allowed, f"{name(path)} imports {found} before it needs them"


@every_source
def test_the_environment_is_read_in_one_place(path: Path) -> None:
    assert name(path) == "xfn/_core/dispatch.py" or "environ" not in path.read_text()


@every_source
def test_no_catch_all_arguments_in_public_signatures(path: Path) -> None:
    parts = path.relative_to(ROOT / "xfn").with_suffix("").parts
    private = parts[0] == "compat" or any(part.startswith("_") for part in parts if part != "__init__")
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not private:
            assert node.args.kwarg is None, f"{name(path)}: {node.name} takes **{node.args.kwarg}"


@pytest.mark.parametrize("path", SOURCES + TESTS + OTHERS, ids=name)
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    kind = parts[1] if parts[0] == "xfn" and len(parts) > 2 else parts[0]
    count = len(path.read_text().splitlines())
    assert count <= LENGTHS.get(kind, 300), f"{name(path)} has {count} lines"


def test_the_median_file_is_short() -> None:
    assert statistics.median(len(p.read_text().splitlines()) for p in SOURCES if p.stat().st_size) < 150


@pytest.mark.parametrize("path", SOURCES + TESTS + OTHERS, ids=name)
def test_a_file_says_what_it_is(path: Path) -> None:
    assert not path.read_text() or ast.get_docstring(tree(path))


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_no_comparison_is_thrown_away(path: Path) -> None:
    """A bare ``a == b`` or ``torch.equal(a, b)`` checks nothing."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Expr):
            assert not isinstance(node.value, ast.Compare | ast.BoolOp), f"{name(path)}:{node.lineno}"
            call = ast.unparse(node.value.func) if isinstance(node.value, ast.Call) else ""
            assert not call.endswith(("allclose", ".equal", "isfinite")), f"{name(path)}:{node.lineno}"


# The public surface.


MODULES = (
    "bias",
    "factory",
    "layout",
    "patterns",
    "plot",
    "random",
    "sparsity",
    "ops.residual",
    "compat.factory",
    "compat.flex",
    "compat.jax",
    "compat.ops",
    "compat.ops.fmha",
    "compat.sdpa",
    "compat.sparse_attention",
    "compat.timm",
    "compat.transformers",
)


def public() -> Iterator[tuple[str, Any]]:
    """Every public function, of the package and of its public modules."""
    for title, value in vars(xfn).items():
        if not title.startswith("_") and not isinstance(value, ModuleType):
            yield f"xfn.{title}", value
    for title in MODULES:
        module = importlib.import_module(f"xfn.{title}")
        for inner, thing in vars(module).items():
            home = getattr(thing, "__module__", "")
            if f"{home}.".startswith(f"{module.__name__}.") and not inner.startswith("_"):
                yield f"xfn.{title}.{inner}", thing


PUBLIC = dict(public())
FUNCTIONS = {title: f for title, f in PUBLIC.items() if inspect.isfunction(f)}


@pytest.mark.parametrize("title", FUNCTIONS)
def test_every_public_function_is_documented_with_an_example(title: str) -> None:
    text = inspect.getdoc(FUNCTIONS[title]) or ""
    assert text.split("\n\n")[0].rstrip().endswith((".", ":", "]")), f"{title}: the first sentence ends"
    assert ">>> " in text, f"{title} has no example"
    takes = [p for p in inspect.signature(FUNCTIONS[title]).parameters if p not in ("key", "backend")]
    missing = [p for p in takes if f"{p}:" not in text and f"{p}," not in text and "As :func:" not in text]
    assert not missing, f"{title} does not explain {missing}"
