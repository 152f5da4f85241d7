"""README's tables are what the command that writes them finds."""

import importlib
from pathlib import Path

import pytest

from benchmarks import front
from benchmarks.attention.problem import Settings

PAGE = "# A page\n\n<!-- transforms -->\nold\n<!-- /transforms -->\n\n<!-- speed --><!-- /speed -->\n"


def test_readme_shows_who_can_be_transformed_how() -> None:
    said = front.README.read_text(encoding="utf-8").splitlines()
    assert [line for line in front.transforms() if line not in said] == []


def test_ours_goes_through_every_transform() -> None:
    assert {found[0] for _, _, found in front.states()} == {"✓ works"}


@pytest.mark.parametrize("table", front.SPEED)
def test_the_rows_of_the_second_table_are_rows_of_the_benchmarks(table: str) -> None:
    rows = importlib.import_module(f"benchmarks.{table}").rows(Settings(False, False, None, {"float32": 1.0}))
    assert {*front.SPEED[table]} <= {row.name for row in rows}


def test_tables_are_written_where_they_stand() -> None:
    page = front.replaced(front.replaced(PAGE, "transforms", ["new"]), "speed", ["| 2 |"])
    assert page == (
        "# A page\n\n<!-- transforms -->\n\nnew\n\n<!-- /transforms -->\n\n<!-- speed -->\n\n| 2 |\n\n<!-- /speed -->\n"
    )
    with pytest.raises(LookupError, match="no place for speed"):
        front.replaced("", "speed", [])


def test_a_quick_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    front.main(["--quick", "--into", str(page)])
    assert page.read_text(encoding="utf-8") == PAGE
    assert "forward float32" in capsys.readouterr().out
