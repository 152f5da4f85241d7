"""The interpreter computes what a GPU does: torch, in the same dtype, is the oracle."""

import os
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="triton does not interpret here")
small: Any = pytest.importorskip("tests.gpu.small", reason="triton is not installed")
W = 64
HALF = (torch.bfloat16, torch.float16)
NAN, INF, DTYPES = torch.nan, torch.inf, (*HALF, torch.float32)


def pointwise(
    op: str, x: Tensor, y: Tensor | None = None, to: torch.dtype | None = None, number: float = 0.0
) -> Tensor:
    z = torch.zeros(len(x), dtype=to or x.dtype)
    small.pointwise[(1,)](x, x if y is None else y, z, number, OP=op, W=len(x))
    return z


def drawn(dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(W, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_are_of_numbers(dtype: torch.dtype) -> None:
    x, y = torch.randn(2, 16, 16).to(dtype)
    z = torch.zeros(16, 16)
    small.product[(1,)](x, y, z, W=16)
    torch.testing.assert_close(z, x.float() @ y.float(), rtol=1e-6, atol=1e-6)


EDGES = [
    0.0,
    -0.0,
    INF,
    -INF,
    NAN,
    1.0,
    3.4e38,
    1e-40,
    1.0039062,
    1.0117188,
    1.0117189,
    65504.0,
    65520.0,
    -65519.0,
    6e-8,
]


@pytest.mark.parametrize("to", HALF, ids=str)
def test_rounding_is_to_the_nearest_and_ties_to_even(to: torch.dtype) -> None:
    x = torch.cat([torch.tensor(EDGES), torch.randn(W - len(EDGES)) * 100])
    assert torch.equal(pointwise("copy", x, to=to).nan_to_num(7.0), x.to(to).nan_to_num(7.0))


def test_every_bfloat16_widens_to_itself() -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    assert torch.equal(pointwise("copy", every, to=torch.float32).nan_to_num(7.0), every.float().nan_to_num(7.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_arithmetic_is_rounded_to_its_dtype(dtype: torch.dtype) -> None:
    x, y = drawn(dtype), drawn(dtype, 1)
    assert torch.equal(pointwise("add", x, y), x + y)
    assert torch.equal(pointwise("negate", x), -x)
    assert torch.equal(pointwise("less", x, y, to=torch.int8).bool(), x < y)
    assert torch.equal(pointwise("constant", x), x * torch.tensor(0.1, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_argument_that_floats_is_float32(dtype: torch.dtype) -> None:
    """So a product with it is in float32 and is rounded once."""
    x = drawn(dtype)
    assert torch.equal(pointwise("number", x, number=0.1, to=torch.float32), x.float() * torch.tensor(0.1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_maximum_passes_no_nan_on(dtype: torch.dtype) -> None:
    x, y = torch.tensor([1.0, NAN, 2.0, NAN]).to(dtype), torch.tensor([2.0, 1.0, NAN, NAN]).to(dtype)
    assert torch.equal(pointwise("maximum", x, y)[:3], torch.tensor([2.0, 1.0, 2.0]).to(dtype))
    assert torch.equal(pointwise("minimum", x, y)[:3], torch.tensor([1.0, 1.0, 2.0]).to(dtype))
    assert pointwise("maximum", x, y)[3].isnan()


@pytest.mark.parametrize(("begin", "end"), [(0, 0), (0, 3), (2, 7), (5, 1)])
def test_a_loop_to_a_number(begin: int, end: int) -> None:
    z = torch.full((1,), -1)
    small.loop[(1,)](torch.tensor([begin]), end, z)
    assert z.item() == len(range(begin, end))


def test_a_function_in_a_function_and_the_language_after_it() -> None:
    x, z = drawn(torch.float32).abs(), torch.zeros(W)
    for _ in range(2):
        small.nested[(1,)](x, z, W=W)
        torch.testing.assert_close(z, (2 * x).sqrt())
    assert small.tl.sum.__module__.startswith("triton")


def test_what_overflows_behind_a_mask_warns_of_nothing() -> None:
    assert pointwise("add", torch.full((W,), 3e38), torch.full((W,), 3e38)).isinf().all()
