"""A bug of every kind, planted in a kernel: the sanitizer finds it, and finds nothing in what is right."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import xfn
from xfn import bias

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="triton does not interpret here")
small: Any = pytest.importorskip("tests.gpu.small", reason="triton is not installed")
sanitizer: Any = pytest.importorskip("tests.gpu.sanitizer", reason="triton is not installed")
WIDTH = 16


def full(*shape: int) -> Tensor:
    return torch.ones(*shape)


def strided() -> Tensor:
    """Rows of WIDTH, behind each a gap."""
    return torch.ones(4, 2 * WIDTH)[:, :WIDTH]


def read_then_write(n: int) -> None:
    fresh = torch.empty(WIDTH)
    small.copy[(1,)](full(WIDTH), fresh, n, W=WIDTH)
    small.copy[(1,)](fresh, full(WIDTH), WIDTH, W=WIDTH)


def halves(*counts: int) -> None:
    fresh = torch.ones(2).new_empty(2 * WIDTH)
    for i, n in enumerate(counts):
        small.copy[(1,)](full(WIDTH), fresh[i * WIDTH :], n, W=WIDTH)


def neighbours() -> tuple[Tensor, Tensor]:
    both = full(2, WIDTH)
    return both[0], both[1]


x, y = full(4, WIDTH), full(4, WIDTH)

BROKEN: dict[str, tuple[str, Callable[[], Any]]] = {
    "a read behind the end": (
        "out of bounds: element 8 of x",
        lambda: small.copy[(1,)](full(8), full(16), 16, W=WIDTH),
    ),
    "a write behind the end": (
        "out of bounds: element 8 of y",
        lambda: small.copy[(1,)](full(16), full(8), 16, W=WIDTH),
    ),
    "a read of a neighbour": (
        "out of bounds: element 16 of x",
        lambda: small.copy[(1,)](neighbours()[0], full(32), 32, W=2 * WIDTH),
    ),
    "a read before the start": (
        "out of bounds: element -16 of x",
        lambda: small.copy_rows[(2,)](neighbours()[1], full(2, WIDTH), -WIDTH, WIDTH, W=WIDTH),
    ),
    "a read in a gap": (
        "out of bounds: element 16 of x",
        lambda: small.copy_rows[(4,)](strided(), full(4, WIDTH), WIDTH, WIDTH, W=WIDTH),
    ),
    "a write in a gap": (
        "out of bounds: element 16 of y",
        lambda: small.copy_rows[(4,)](full(4, WIDTH), strided(), WIDTH, WIDTH, W=WIDTH),
    ),
    "a read of nothing": ("out of bounds: element 0 of x", lambda: small.copy[(1,)](full(0), full(16), 16, W=WIDTH)),
    "an atomic behind the end": (
        "out of bounds: element 8 of y",
        lambda: small.tally[(1,)](full(1, WIDTH), full(8), W=WIDTH, ATOMIC=True),
    ),
    "a read of what nobody wrote": ("never written: it reads element 8 of x", lambda: read_then_write(8)),
    "a result that is half written": ("never written: element 24 of y of copy", lambda: halves(16, 8)),
    "a result with a half left out": ("never written: element 16 of y of copy", lambda: halves(16)),
    "two writers": ("race: it writes element 0 of y", lambda: small.copy[(2,)](full(16), full(16), 16, W=WIDTH)),
    "a reader behind the writer": ("race: it reads element 0 of x", lambda: small.roll[(8,)](full(8), 7)),
    "a reader before the writer": ("race: it writes element 1 of x", lambda: small.roll[(8,)](full(8), 1)),
    "a sum that is not atomic": (
        "race: it reads element 0 of y",
        lambda: small.tally[(2,)](x, full(16), W=16, ATOMIC=False),
    ),
    "a place that is written twice": ("twice at once", lambda: small.crowd[(1,)](full(16), W=WIDTH)),
    "no barrier": ("with no barrier between", lambda: small.turned[(1,)](full(32), W=WIDTH, BARRIER=False)),
    "a race in two dtypes": (
        "race: it reads element 16 of x",
        lambda: small.copy_rows[(2,)](x, x.view(torch.int16)[1:], WIDTH, 2 * WIDTH, W=WIDTH),
    ),
    "a descriptor that claims too much": (
        "out of bounds: element 64 of x",
        lambda: small.through[(2,)](x, y, 8, W=WIDTH),
    ),
}

RIGHT: dict[str, Callable[[], Any]] = {
    "behind a mask": lambda: small.copy[(1,)](full(8), full(8), 8, W=WIDTH),
    "rows with gaps": lambda: small.copy_rows[(4,)](strided(), strided(), 2 * WIDTH, 2 * WIDTH, W=WIDTH),
    "one row for all": lambda: small.copy_rows[(4,)](full(WIDTH).expand(4, WIDTH), full(4, WIDTH), 0, WIDTH, W=WIDTH),
    "one tensor, read twice": lambda: small.tally[(1,)](x, full(16), W=WIDTH, ATOMIC=False),
    "written, then read": lambda: read_then_write(16),
    "written by two launches": lambda: halves(16, 16),
    "written by torch": lambda: small.copy[(1,)](torch.empty(16).fill_(1.0), torch.empty(16).zero_(), 8, W=WIDTH),
    "a sum that is atomic": lambda: small.tally[(2,)](x, full(16), W=WIDTH, ATOMIC=True),
    "a barrier": lambda: small.turned[(1,)](full(32), W=WIDTH, BARRIER=True),
    "descriptors": lambda: small.through[(1,)](x, y, 4, W=WIDTH),
}


@pytest.mark.parametrize(("what", "run"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_found(what: str, run: Callable[[], Any]) -> None:
    def whole() -> None:
        run()
        sanitizer.settle()

    with pytest.raises(sanitizer.Broken, match=what):
        whole()


@pytest.mark.parametrize("run", RIGHT.values(), ids=RIGHT)
def test_what_is_right_passes(run: Callable[[], Any]) -> None:
    run()
    sanitizer.settle()


# The same in attention's own kernels.


@pytest.mark.parametrize(
    ("what", "name", "instead"),
    [("out of bounds", "within", small.unmasked), ("race: it writes", "turn", small.first_tile)],
)
def test_a_bug_in_attention_is_found(what: str, name: str, instead: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("xfn.kernels.triton.attention")
    for title, module in list(sys.modules.items()):
        if title.startswith("xfn.kernels.triton") and hasattr(module, name):
            monkeypatch.setattr(module, name, instead)
    q = torch.randn(20, 1, 16)
    with pytest.raises(sanitizer.Broken, match=what):
        xfn.attention(q, q, q, bias.causal(), backend="triton")
