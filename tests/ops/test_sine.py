"""Sinusoidal positions: the formula number by number, exact far out."""

import math
import re
from typing import Any

import pytest
import torch

import xfn
from xfn import ShapeError

from ..cases import agree


@pytest.mark.parametrize(("start", "E", "base"), [(0, 6, 10000.0), (100_000, 7, 10000.0), (-5, 1, 100.0)])
def test_is_the_formula(start: int, E: int, base: float) -> None:
    want = [
        [(math.cos if i % 2 else math.sin)(m * base ** (-2 * (i // 2) / E)) for i in range(E)]
        for m in range(start, start + 4)
    ]
    agree(xfn.sine(torch.zeros(4, E, dtype=torch.float64), start, base), torch.tensor(want, dtype=torch.float64), 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_is_rounded_once(dtype: torch.dtype) -> None:
    x = torch.randn(3, 8, 16).to(dtype)
    y = xfn.sine(x, 100_000)
    assert y.dtype == dtype
    agree(y, xfn.sine(x.double(), 100_000), torch.finfo(dtype).eps)


def test_positions_may_be_given_one_by_one() -> None:
    x, starts = torch.randn(2, 5, 4, dtype=torch.float64), torch.tensor([3, 70])
    want = torch.stack([xfn.sine(x[i], int(starts[i])) for i in range(2)])
    agree(xfn.sine(x, starts[:, None] + torch.arange(5)), want)
    agree(torch.func.vmap(xfn.sine)(x, starts), want)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: xfn.sine(torch.zeros(4)), ShapeError, "x [..., M, E] needs at least 2 dims"),
        (lambda: xfn.sine(torch.zeros(2, 4), torch.arange(3)), ShapeError, "but there are M=2 tokens"),
        (lambda: xfn.sine(torch.zeros(2, 4), base=-1.0), ValueError, "base=-1.0 must be above 0"),
        (lambda: xfn.sine(torch.zeros(2, 4).long()), TypeError, "x is torch.int64"),
    ],
)
def test_errors_say_what_to_write(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        call()
