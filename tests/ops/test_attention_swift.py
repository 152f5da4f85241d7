"""The plainest calls of attention, also over layouts, go whole in C++: to the bit what Python's road gives."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, grad

import xfn
from xfn import bias as biases
from xfn import layout as layouts
from xfn import random
from xfn._core.dispatch import module
from xfn.layout import Layout
from xfn.ops.attention import ATTENTION, attention_with_lse
from xfn.ops.blocksparse import BLOCKSPARSE, _tables, blocksparse_attention_with_lse

ROOT = Path(__file__).parent.parent.parent
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BIASES = {"no bias": None, "causal": biases.causal(), "window": biases.local(1, 2)}
LAYOUTS = {
    "no layout": None,
    "causal tiles": layouts.causal(9, block=8),
    "an empty row": Layout(torch.tensor([[0, 0], [1, 1]]).bool(), 8, (9, 9)),
    "tiles of each head": layouts.random(9, block=8, density=0.5, heads=4, key=random.key(0)),
    "bits": layouts.from_mask(random.bernoulli(random.key(1), 0.5, (4, 9, 9)), block=8),
}

try:
    MISSING = ATTENTION.swift is None and f"no library: {getattr(module('cpu', 'attention'), 'DETAIL', '')}"
except ImportError as error:
    MISSING = str(error)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"there is nothing to test: {MISSING}")


def operands(dtype: torch.dtype = torch.float32, *batch: int, spoilt: bool = False) -> list[Tensor]:
    """Grouped heads, and values of another width than keys; ``spoilt``: with a key that is not finite."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((*batch, 9, 4, 6), (*batch, 9, 2, 6), (*batch, 9, 2, 5))
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    if spoilt:
        made[1][..., 7, 0, 0] = torch.inf
    return [t.requires_grad_() for t in made]


def same(got: Any, want: Any) -> None:
    for a, b in zip(got, want, strict=True):
        assert (a is None and b is None) or (a.dtype == b.dtype and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)))


Pair = tuple[Tensor, Tensor]


def attend(x: list[Tensor], bias: Any, layout: Layout | None, **options: Any) -> Pair:
    """out and lse: by the short road, if there are no options."""
    if layout is None:
        return attention_with_lse(*x, bias, **options)
    return blocksparse_attention_with_lse(layout, *x, bias, **options)


def roads(x: list[Tensor], bias: Any, layout: Layout | None = None) -> tuple[Pair, Pair]:
    """out and lse by the short road, and by the one that a named backend takes."""
    return attend(x, bias, layout), attend(x, bias, layout, backend="cpu")


@pytest.mark.parametrize("spoilt", [False, True], ids=["finite", "spoilt"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES.keys())
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_value_and_gradient_are_the_same_bits(
    layout: Layout | None, bias: Any, dtype: torch.dtype, batch: Any, spoilt: bool
) -> None:
    x = operands(dtype, *batch, spoilt=spoilt)
    short, long = roads(x, bias, layout)
    swift = "Attention" in short[0].grad_fn.name()  # type: ignore[union-attr]
    assert swift == ((bias is None and layout is None) or not spoilt)  # what a mask hides is made clean by Python
    same(short, long)
    dy = [torch.randn_like(y) for y in short]
    for some in ([0], [1], [0, 1]):
        pick = lambda ts, some=some: [ts[i] for i in some]
        same(*(grad(pick(y), x, pick(dy), retain_graph=True, allow_unused=True) for y in (short, long)))
    with torch.no_grad():
        same(attend(x, bias, layout), long)
    with torch.inference_mode():
        same(attend(x, bias, layout), long)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_only_what_is_wanted_is_returned(wanted: tuple[int, ...]) -> None:
    x = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(operands())]
    short, long = roads(x, None)
    same(*(grad(y[0].square().sum(), [x[i] for i in wanted]) for y in (short, long)))


@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES.keys())
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_second_order_is_the_family_s(layout: Layout | None, bias: Any) -> None:
    x = operands(torch.float64, 2)
    short, long = roads(x, bias, layout)

    def twice(y: tuple[Tensor, Tensor]) -> Any:
        first = grad(y[0].square().sum() + y[1].sin().sum(), x, create_graph=True)
        return grad(sum(g.square().sum() for g in first), x)

    same(twice(short), twice(long))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_is_grads_batched_is_mapped(layout: Layout | None) -> None:
    x = operands()
    dy = torch.randn(3, 9, 4, 5)
    short, long = roads(x, None, layout)
    for a, b in zip(*(grad(y[0], x, dy, is_grads_batched=True) for y in (short, long)), strict=True):
        torch.testing.assert_close(a, b)


def declined() -> dict[str, Any]:
    """Calls that hold what only Python knows, or that are to raise there."""
    q, k, v = operands()
    return {
        "ranks": (q[None], k, v),
        "batches": (q[None], k[None], v.expand(2, -1, -1, -1)),
        "lengths": (q, k[:4], v),
        "features": (q[..., :4], k, v),
        "heads": (q[:, :3], k, v),
        "no heads": (q, k[:, :0], v[:, :0]),
        "dtypes": (q, k.double(), v),
        "integers": [t.detach().long() for t in (q, k, v)],
        "complex numbers": [t.detach().to(torch.cfloat) for t in (q, k, v)],
        "negated views": (torch.randn(9, 4, 6, dtype=torch.cfloat).conj().imag, k, v),
        "sparse": (q.detach().to_sparse(), k, v),
        "elsewhere": [t.detach().to("meta") for t in (q, k, v)],
    }


@pytest.mark.parametrize("name", declined())
def test_any_other_call_is_declined(name: str) -> None:
    assert ATTENTION.swift is not None
    assert ATTENTION.swift(*declined()[name], None, None) == (None, None)


def tiles(layout: Layout) -> tuple[Any, ...]:
    """What a layout is told by."""
    return *_tables(layout), layout.M, layout.N, layout.block


def strangers() -> dict[str, Layout]:
    """Layouts that are of other lengths or heads."""
    return {
        "other queries": layouts.causal(10, 9, block=8),
        "other keys": layouts.causal(9, 10, block=8),
        "more tiles": layouts.causal(17, block=8),
        "other heads": layouts.random(9, block=8, density=0.5, heads=3, key=random.key(0)),
        "elsewhere": layouts.causal(9, block=8).to("meta"),
    }


@pytest.mark.parametrize("name", strangers())
def test_a_layout_of_other_lengths_is_declined(name: str) -> None:
    swift, layout = BLOCKSPARSE.swift, strangers()[name]
    assert swift is not None
    assert swift(*operands(), None, None, *tiles(layout)) == (None, None)
    with pytest.raises(ValueError, match="the layout"):
        blocksparse_attention_with_lse(layout, *operands())


def test_a_call_is_declined_where_something_is_on() -> None:
    x, swift = operands(), ATTENTION.swift
    assert swift is not None
    with torch.autocast("cpu"):
        assert swift(*x, None, None) == (None, None)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x[0].detach(), torch.ones_like(x[0]))
        assert swift(dual, *x[1:], None, None) == (None, None)
        tangent = forward_ad.unpack_dual(xfn.attention(dual, *x[1:])).tangent
    assert tangent is not None


def test_torch_sees_a_node_like_its_own() -> None:
    x = operands()
    y = xfn.attention(*x)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        same(grad(xfn.attention(*x).sum(), x), grad(y.sum(), x, retain_graph=True))
    assert {t.data_ptr() for t in x} <= {t.data_ptr() for t in kept}
    same(grad(y.sum(), x, retain_graph=True), grad(y.sum(), x))
    with pytest.raises(RuntimeError, match="second time"):
        grad(y.sum(), x)
    y = xfn.attention(*x)
    with torch.no_grad():
        x[1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grad(y.sum(), x)


WITHOUT = """
import torch
from xfn.kernels.cpu import library
library.RELEASE = "0.0.0"
import xfn
from xfn.info import lines
from xfn.ops.attention import ATTENTION
q = torch.ones(3, 1, 1, requires_grad=True)
xfn.attention(q, q, q).sum().backward()
assert ATTENTION.swift is None and q.grad is not None
print(*(line for line in lines() if "reverse mode" in line))
"""


def test_where_the_library_is_of_another_torch_python_does_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "reverse mode in Python, for _autograd.0.0.0.so is not there; build it" in done.stdout


def test_more_keys_than_are_counted_are_refused() -> None:
    q = torch.ones(20, 1, 1)
    k = q[:1].expand(2**31, 1, 1)
    with pytest.raises(RuntimeError, match=r"takes fewer than 2\*\*31 queries and keys, but got 20 and 2147483648"):
        xfn.attention(q, k, k, biases.span(2**31 - 40, 2**31))
