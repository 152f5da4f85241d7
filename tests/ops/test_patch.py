"""Patches: one convolution, of images of any rectangle and of tokens on a grid."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import xfn
from xfn import ShapeError, random
from xfn.ops.patch import Pair, Patch

from ..cases import agree


def params(C: int, E: int, kernel: Pair, dtype: torch.dtype = torch.float64) -> Patch:
    return xfn.init_patch(random.key(0), C, E, kernel, dtype=dtype)


def convolved(p: Patch, x: Tensor, stride: Pair, padding: Pair) -> Tensor:
    return torch.nn.functional.conv2d(x, p["weight"], p.get("bias"), stride, padding).flatten(-2).mT


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(2, 2, 0), ((2, 3), (2, 3), 0), (3, 2, 1), ((3, 2), (1, 2), (0, 1)), (2, 3, 0), (4, 4, 2), (1, 1, 0)],
    ids=str,
)
@pytest.mark.parametrize(("h", "w"), [(6, 6), (7, 11), (4, 3)])
def test_is_torchs_convolution(kernel: Pair, stride: Pair, padding: Pair, h: int, w: int) -> None:
    p, x = params(3, 5, kernel), torch.randn(2, 3, h, w, dtype=torch.float64)
    want = convolved(p, x, stride, padding)
    agree(xfn.patch(p, x, stride, padding), want)
    agree(xfn.patch(p, x[1], stride, padding), want[1])
    agree(xfn.patch(p, x[None], stride, padding), want[None])
    tokens = x.flatten(-2).mT
    agree(xfn.patch(p, tokens, stride, padding, (h, w)), want)
    i, s, a = (v if isinstance(v, int) else v[0] for v in (kernel, stride, padding))
    j, r, b = (v if isinstance(v, int) else v[1] for v in (kernel, stride, padding))
    assert want.shape[-2] == ((h + 2 * a - i) // s + 1) * ((w + 2 * b - j) // r + 1)


def test_the_stride_is_that_of_tiles_and_a_number_is_a_square() -> None:
    p, x = params(3, 5, (2, 3)), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    agree(xfn.patch(p, x), xfn.patch(p, x, (2, 3)))
    agree(xfn.patch(p, x.flatten(-2).mT, grid=6), xfn.patch(p, x))


@pytest.mark.parametrize("stride", [2, 1], ids=["tiles", "overlap"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype: torch.dtype, stride: int) -> None:
    p, x = params(3, 5, 2, dtype), torch.randn(2, 3, 6, 8).to(dtype)
    want = convolved({"weight": p["weight"].double(), "bias": p["bias"].double()}, x.double(), stride, 0)
    y = xfn.patch(p, x, stride)
    assert y.dtype == dtype
    agree(y, want, 12 * torch.finfo(dtype).eps)


def test_what_is_drawn_is_what_torch_draws() -> None:
    p = params(8, 64, (4, 2))
    theirs = torch.nn.Conv2d(8, 64, (4, 2))
    for mine, other in ((p["weight"], theirs.weight), (p["bias"], theirs.bias)):
        assert isinstance(other, Tensor)
        assert mine.shape == other.shape
        assert mine.abs().max() <= 1 / math.sqrt(64)
        assert 0.4 < mine.std() * math.sqrt(64) < 0.75  # even in ±1 has 0.577
    assert "bias" not in xfn.init_patch(random.key(0), 3, 4, 2, bias=False)


P, X = params(3, 5, 4), torch.zeros(2, 3, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: xfn.patch(P, X[..., :3]), ShapeError, "x [..., C, h, w] has w=3, padding is 0, but a patch has 4"),
        (lambda: xfn.patch(P, X[:, :2]), ShapeError, "weight [..., E, C, i, j] has C=3, but x has C=2"),
        (lambda: xfn.patch(P, X[0, 0]), ShapeError, "x [..., C, h, w] needs at least 3 dims"),
        (
            lambda: xfn.patch(P, X.flatten(-2).mT, grid=(8, 7)),
            ShapeError,
            "x [..., M, C] has M=64 tokens, but a grid of 8 × 7 has 56",
        ),
        (lambda: xfn.patch(P, X, 0), ValueError, "stride=0 must be one or two integers from 1 on"),
        (lambda: xfn.patch(P, X, padding=(0, -1)), ValueError, "padding=(0, -1) must be one or two integers from 0 on"),
        (lambda: xfn.patch(P, X, (1, 2, 3)), ValueError, "stride=(1, 2, 3) must be one or two integers"),
        (lambda: xfn.patch({"kernel": X}, X), ValueError, "but these lack weight and have kernel besides"),  # type: ignore[typeddict-item,typeddict-unknown-key]
        (lambda: xfn.init_patch(random.key(0), 3, 4, 0), ValueError, "kernel=0 must be one or two integers from 1 on"),
    ],
)
def test_errors_say_what_to_write(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        call()
