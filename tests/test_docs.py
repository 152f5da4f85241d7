"""Every Python block of README.md and docs/ runs, page by page, and every link leads somewhere."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_its_code_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, text = ModuleType(re.sub(r"\W", "_", name(page))), page.read_text()
    monkeypatch.setitem(sys.modules, module.__name__, module)  # torch.compile looks a function's globals up there
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        padding = "\n" * text[: block.start(1)].count("\n")
        exec(compile(padding + block[1], str(page), "exec"), vars(module))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{name(page)} links to {target}"
