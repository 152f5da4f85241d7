"""What ``test_interpreted.py`` and ``test_rows.py`` ask of Triton's kernels, asked of them on a GPU; and what only a
GPU can tell."""

import importlib
from typing import Any

import pytest
import torch
from torch import func

import xfn
from xfn import bias
from xfn._core.dispatch import Call, reasons

from ..cases import error
from ..device import DEVICE, gpu
from . import test_interpreted, test_rows

pytestmark = [gpu, pytest.mark.skipif(DEVICE.type == "cpu", reason="it needs a GPU: pytest -m gpu")]
LAWS = vars(test_interpreted) | vars(test_rows)
globals().update({name: LAWS[name] for name in LAWS if name.startswith("test_") and "bug" not in name})

SIZES = {"even": (2, 1024, 4, 64), "ragged": (3, 1111, 6, 128), "wide": (1, 500, 2, 256)}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("mask", [None, bias.causal(), bias.local(100, 30)], ids=["dense", "causal", "window"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_calls_of_many_tiles(dtype: torch.dtype, mask: bias.Bias | None, size: tuple[int, int, int, int]) -> None:
    """Value, gradient and tangent, at the tiles that ship, which an interpreter does not see."""
    B, S, H, D = size
    q, k, v, t = (torch.randn(B, S, H, D).to(dtype) for _ in range(4))
    k, v = k[:, :, : H // 2], v[:, :, : H // 2]

    def family(backend: str, to: torch.dtype) -> list[torch.Tensor]:
        f = lambda *x: xfn.attention_with_lse(*x, mask, backend=backend)
        x = (q.to(to), k.to(to), v.to(to))
        y, pull = func.vjp(f, *x)[:2]
        return [*y, *pull((t.to(to), y[1])), *func.jvp(f, x, tuple(u.cos() for u in x))[1]]

    exact, same = family("tiled", torch.float64), family("tiled", dtype)
    for got, theirs, want in zip(family("triton", dtype), same, exact, strict=True):
        assert error(got, want) <= 3 * error(theirs, want) + 32 * torch.finfo(dtype).eps


@test_rows.rows
@pytest.mark.parametrize("dtype", test_rows.DTYPES, ids=str)
@pytest.mark.parametrize(("R", "E"), [(5000, 64), (3000, 1000), (70, 8192), (33, 20000), (3, 65536)])
def test_rows_of_shipping_tiles(f: Any, R: int, E: int, dtype: torch.dtype) -> None:
    """Value and gradient, of rows in one tile and in chunks, with strips that sum."""
    x = tuple(torch.randn(shape).to(dtype) for shape in ((2, R, E), (E,), (E,)))
    exact = test_rows.both(f, tuple(t.double() for t in x), "reference")
    got, same = (test_rows.both(f, x, backend) for backend in ("triton", "reference"))
    for mine, theirs, right in zip(got, same, exact, strict=True):
        mine, theirs, right = (torch.where(right == -torch.inf, 0, t) for t in (mine, theirs, right))
        assert error(mine, right) <= max(1e-10, 3 * error(theirs, right) + 32 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(("precision", "digits"), [("highest", 2.0**-23), ("high", 2.0**-10)])
def test_products_of_float32_are_as_precise_as_torch_says(precision: str, digits: float) -> None:
    """``torch.set_float32_matmul_precision`` decides about tf32."""
    q, k, v = torch.randn(3, 1, 500, 2, 64)
    exact = xfn.attention(q.double(), k.double(), v.double())
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        found = error(xfn.attention(q, k, v, backend="triton"), exact)
    finally:
        torch.set_float32_matmul_precision(before)
    assert digits / 64 < found < 16 * digits


HOPPER = DEVICE.type == "cuda" and torch.cuda.get_device_capability() == (9, 0)


@pytest.mark.skipif(not HOPPER, reason="it needs a device of compute capability 9.0")
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("mask", [None, bias.causal(), bias.local(300, 200)], ids=["dense", "causal", "window"])
def test_hopper_has_the_numbers_of_all_devices(mask: bias.Bias | None, D: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own kernel and without; a NaN reaches as far with the one as with the other, and bits repeat."""
    config = importlib.import_module("xfn.kernels.triton.attention.config")
    q, k, v = torch.randn(2, 1500, 4, D).bfloat16(), *torch.randn(2, 2, 1700, 2, D).bfloat16()
    v[1, 1000] = torch.nan
    attend = lambda: xfn.attention_with_lse(q, k, v, mask, backend="triton")
    own, again = attend(), attend()
    monkeypatch.setattr(config, "HOPPER", False)
    for mine, same, theirs in zip(own, again, attend(), strict=True):
        assert torch.equal(mine.isnan(), theirs.isnan())
        assert torch.equal(mine.nan_to_num(), same.nan_to_num())
        assert error(mine.nan_to_num(), theirs.nan_to_num()) <= 4 * torch.finfo(torch.bfloat16).eps


def test_nothing_waits_for_the_device() -> None:
    """A step may be captured into a graph, which forbids to wait."""
    x = tuple(t.bfloat16().requires_grad_() for t in torch.randn(3, 2, 256, 4, 64))
    step = lambda: torch.autograd.grad(xfn.attention(*x, bias.causal()).sum(), x)
    want = step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_the_first_choice_on_a_gpu_is_triton() -> None:
    """But for float32 of few features, where the CUDA library is there."""
    few = torch.randn(1, 64, 2, 8)
    if not reasons("cuda", Call("attention", "forward", {"q": few, "k": few, "v": few, "dense": None}, {})):
        assert torch.equal(xfn.attention(few, few, few), xfn.attention(few, few, few, backend="cuda"))
    q = torch.randn(1, 64, 2, 64).bfloat16()
    assert torch.equal(xfn.attention(q, q, q), xfn.attention(q, q, q, backend="triton"))
    assert torch.equal(xfn.softmax(q), xfn.softmax(q, backend="triton"))
