"""Simplicial embedding: every chunk a point of a simplex, and its input left alone."""

import re
from typing import Any

import pytest
import torch

import xfn
from xfn import ShapeError

from ..cases import agree

X = torch.randn(2, 3, 12, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 3.0])
@pytest.mark.parametrize("L", [1, 3, 4, 12])
def test_every_chunk_is_a_softmax(L: int, temperature: float) -> None:
    x = X.clone()
    y = xfn.simplicial(x, L, temperature)
    assert torch.equal(x, X)
    chunks = y.unflatten(-1, (L, -1))
    agree(chunks.sum(-1), torch.ones(2, 3, L, dtype=torch.float64))
    agree(chunks, (X.unflatten(-1, (L, -1)) / temperature).softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_is_rounded_once(dtype: torch.dtype) -> None:
    x = (10 * X).to(dtype)
    y = xfn.simplicial(x, 3, 0.3)
    assert y.dtype == dtype
    agree(y, xfn.simplicial(x.double(), 3, 0.3), 32 * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: xfn.simplicial(X, 5), ShapeError, "x [..., E] has E=12, of which L=5 chunks cannot be made"),
        (lambda: xfn.simplicial(X, 0), ValueError, "L=0 is no number of chunks"),
        (lambda: xfn.simplicial(X, 3, 0.0), ValueError, "temperature=0.0 must be above 0"),
        (lambda: xfn.simplicial(X, 3, X), TypeError, "temperature is a number, but got a tensor"),
    ],
)
def test_errors_say_what_to_write(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        call()
