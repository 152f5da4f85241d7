"""What the documentation shows of other packages runs, and nothing here imports them before it is asked to."""

import re
import subprocess
import sys

import pytest

from ..test_docs import PAGES, ROOT, name
from .torchvision import timm

BLOCKS = {
    f"{name(page)}:{i}": (page, found)
    for page in PAGES
    for i, found in enumerate(re.findall(r"^```python oracle\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE))
}
ADAPTERS = sorted(path.stem for path in (ROOT / "xfn" / "compat").glob("[a-z]*.py"))


@pytest.mark.parametrize("block", BLOCKS)
def test_its_code_runs(block: str) -> None:
    timm()
    page, text = BLOCKS[block]
    exec(compile(f"import torch\n{text}", str(page), "exec"), {"__name__": "page"})


def test_no_adapter_imports_what_it_adapts() -> None:
    program = f"""
import sys
import xfn
for name in {ADAPTERS}:
    __import__(f"xfn.compat.{{name}}")
assert not {{"timm", "transformers", "jax", "torchvision"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
