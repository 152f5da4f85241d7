"""The page on moving a program: every name in its table is there, and every one of ours that it should have."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "moving.md").read_text()
ALONE = {"rope_padded_functional", "params_from_state_dict", "build", "Held"}
"""Names that no old program has."""
ROWS = [re.findall(r"[^|]+", line) for line in PAGE.splitlines() if line.startswith("| `")]
NAMES = sorted({
    f"{prefix}.{name}"
    for _, old, new in ROWS
    for prefix, cell in (("xfn.compat", old), ("xfn", new))
    for name in re.findall(r"`([^`]+)`", cell)
})  # fmt: skip


def found(name: str) -> Any:
    """What a dotted name is of: a module, or what is in one."""
    head, *steps = name.split(".")
    value: Any = importlib.import_module(head)
    for i, step in enumerate(steps):
        if not hasattr(value, step):
            importlib.import_module(".".join([head, *steps[: i + 1]]))
        value = getattr(value, step)
    return value


@pytest.mark.parametrize("name", NAMES)
def test_it_is_there(name: str) -> None:
    assert found(name) is not None


@pytest.mark.parametrize(
    "package", ["ops", "ops.fmha", "components", "factory", "sparse", "checkpoint", "attn_bias_utils"]
)
def test_what_a_package_has_is_on_the_page(package: str) -> None:
    """Classes and functions that it defines or hands on, by whichever of their names."""
    module = importlib.import_module(f"xfn.compat.{package}")
    there = {id(found(name)) for name in NAMES}
    ours = {n: id(value) for n, value in vars(module).items() if not n.startswith("_") and lives(value, package)}
    assert ours
    assert {n for n, value in ours.items() if value not in there} <= ALONE


def lives(value: Any, package: str) -> bool:
    """Whether it is a class or a function of one of the package's modules."""
    home = f"{getattr(value, '__module__', '')}."
    return callable(value) and home.startswith(f"xfn.compat.{package}.") and "._" not in home


def test_a_name_is_asked_of_once() -> None:
    there = [row[0].strip() for row in ROWS]
    assert len(there) == len(set(there)) > 150
    assert all(row[1].count("`") == 2 for row in ROWS)
