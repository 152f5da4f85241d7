"""Examples run, and what README says of them is what they find."""

from pathlib import Path

import pytest

from examples import tour

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def states() -> dict[str, list[str]]:
    return tour.main(["--quick"])


def test_the_tour_is_at_home_under_every_transform(states: dict[str, list[str]]) -> None:
    assert {row[0] for row in states.values()} == {"✓ works"}


def test_readme_shows_what_the_tour_finds(states: dict[str, list[str]]) -> None:
    table = README.read_text().replace("\\|", "|")
    for how, row in states.items():
        assert f"| `{how}` | {' | '.join(row)} |" in table
