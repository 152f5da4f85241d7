"""What the documentation shows of other packages runs, where they are installed."""

import re

import pytest

from ..test_docs import PAGES, name
from .torchvision import timm

BLOCKS = {
    f"{name(page)}:{i}": (page, found)
    for page in PAGES
    for i, found in enumerate(re.findall(r"^```python oracle\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE))
}


@pytest.mark.parametrize("block", BLOCKS)
def test_its_code_runs(block: str) -> None:
    timm()
    pytest.importorskip("transformers", reason="transformers is not installed: make oracle installs it")
    page, text = BLOCKS[block]
    exec(compile(f"import torch\n{text}", str(page), "exec"), {"__name__": "page"})
