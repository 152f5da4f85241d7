"""Every example runs, prints what its page promises, and README says of the tour what it finds."""

import importlib
import math
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (ROOT / "examples").glob("[a-z]*.py"))
PAGE = (ROOT / "docs" / "examples.md").read_text()


def run(name: str, *more: str) -> object:
    """What a quick run finds, or the refusal of an example without a package that it needs."""
    threads = torch.get_num_threads()
    try:
        return importlib.import_module(f"examples.{name}").main(["--quick", *more])
    except SystemExit as refusal:
        return refusal
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_as_the_page_says(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It draws where the page has a picture, and ends with the promise that the page says was kept."""
    assert f"## `{name}`" in PAGE, f"docs/examples.md says nothing of {name}"
    section = PAGE.split(f"## `{name}`")[1].split("\n## ")[0]
    assert f"python -m examples.{name}" in section
    picture = tmp_path / f"{name}.svg"
    drawn = f"(pictures/{picture.name})" in section
    found = run(name, *(("--plot", str(picture)) if drawn else ()))
    if isinstance(found, SystemExit):
        assert isinstance(found.__cause__, ModuleNotFoundError)
        assert str(found).endswith("which is not there: pip install xfn[examples]")
        pytest.skip(str(found))
    if name == "tour":
        assert isinstance(found, dict)
        check_readme(found)
        return
    assert picture.exists() == drawn
    last = capsys.readouterr().out.splitlines()[-1]
    promise, _, rest = last.partition(", found: ")
    assert isinstance(found, float)
    assert math.isfinite(found)
    assert rest.endswith("(of a full run)")
    assert any(line.startswith(promise) and line.endswith("(kept)") for line in section.splitlines())


def check_readme(states: dict[str, list[str]]) -> None:
    """The tour is at home under every transform, and README has the table that it finds."""
    table = (ROOT / "README.md").read_text().replace("\\|", "|")
    assert {row[0] for row in states.values()} == {"✓ works"}
    for how, row in states.items():
        assert f"| `{how}` | {' | '.join(row)} |" in table


def test_pictures_are_small() -> None:
    for picture in (ROOT / "docs" / "pictures").iterdir():
        assert picture.stat().st_size < 60_000, picture.name
