"""Tensors of entries and of blocks: whatever torch does to them is what it does to the dense ones."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.cases import agree
from xfn.compat.ops import masked_matmul
from xfn.compat.sparse import BlockSparseTensor, SparseCSRTensor

N, KEYS = 48, 3
LAYOUT = torch.tensor([[[1, 0, 1], [0, 0, 0], [1, 1, 0]], [[0, 1, 0], [1, 1, 1], [0, 0, 1]]])


def made(kind: Any) -> Any:
    """One of a kind, of which a row is empty, in float64."""
    if kind is BlockSparseTensor:
        return BlockSparseTensor(torch.randn(2, int(LAYOUT.sum()), 16, 16, dtype=torch.float64), LAYOUT)
    seen = torch.rand(N, N) < 0.3
    seen[5] = False
    return SparseCSRTensor.from_dense(torch.randn(2, N, N, dtype=torch.float64) * seen)


def softmax(x: Tensor, seen: Tensor) -> Tensor:
    return x.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)


Both = tuple[Callable[..., Any], Callable[..., Tensor]]
CALLS: dict[str, Both] = {
    "softmax": (lambda x, a, b: torch.softmax(x, dim=-1).to_dense(), lambda x, seen, a, b: softmax(x, seen)),
    "product": (lambda x, a, b: x @ b, lambda x, seen, a, b: (x * seen) @ b),
    "sampled": (lambda x, a, b: masked_matmul(a, b.mT, x).to_dense(), lambda x, seen, a, b: (a @ b.mT) * seen),
    "scaled": (lambda x, a, b: (x * 3.0).to_dense() if isinstance(x, SparseCSRTensor) else x.to_dense() * 3,
               lambda x, seen, a, b: 3 * x * seen),
}  # fmt: skip
kinds = pytest.mark.parametrize("kind", [SparseCSRTensor, BlockSparseTensor])


@kinds
@pytest.mark.parametrize("call", CALLS)
def test_values_and_gradients_are_those_of_the_dense(kind: Any, call: str) -> None:
    ours, dense = CALLS[call]
    x = made(kind)
    full = x.to_dense().detach().requires_grad_()
    lead = (2,) if kind is SparseCSRTensor else (2, 2)
    a, b = (torch.randn(*lead, N, KEYS, dtype=torch.float64, requires_grad=True) for _ in "ab")
    seen = full != 0
    x.requires_grad_()
    y, want = ours(x, a, b), dense(full, seen, a, b)
    agree(y, want)
    slope = torch.randn_like(want)
    found = [torch.autograd.grad(y, t, slope, allow_unused=True, retain_graph=True)[0] for t in (a, b)]
    truth = [torch.autograd.grad(want, t, slope, allow_unused=True, retain_graph=True)[0] for t in (a, b)]
    assert [t is None for t in found] == [t is None for t in truth]
    agree([t for t in found if t is not None], [t for t in truth if t is not None])
    y.backward(slope)
    want.backward(slope)
    if x.grad is not None and full.grad is not None:
        agree(x.grad.to_dense(), full.grad * seen)


@kinds
def test_copies_and_buffers(kind: Any) -> None:
    x, y = made(kind), made(kind)
    assert x.shape == x.to_dense().shape
    assert torch.equal(x, copy.deepcopy(x))
    assert torch.equal(x, x.detach().clone().to("cpu"))
    assert not torch.equal(x, y)
    module: Any = nn.Module()
    module.register_buffer("x", x)
    assert module.x is x
    module.load_state_dict({"x": y})
    assert torch.equal(module.x, y)
    agree(x.to_dense(), y.to_dense())


def test_entries_are_added_multiplied_turned_and_met() -> None:
    x, y = made(SparseCSRTensor), made(SparseCSRTensor)
    a, b = x.to_dense(), y.to_dense()
    agree((x + x).to_dense(), 2 * a)
    agree((x * x).to_dense(), a * a)
    agree(torch.add(x, y).to_dense(), a + b)
    agree(x.transpose(1, 2).to_dense(), a.mT)
    agree(torch.logical_and(x, b != 0).to_dense().double(), ((a != 0) & (b != 0)).double())
    again = SparseCSRTensor(torch.nn.functional.pad(x.places.row_ends, (1, 0)), x.places.columns, x.values(), x.shape)
    assert torch.equal(again, x)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="one pattern"):
        SparseCSRTensor.from_dense(torch.stack([torch.eye(4), torch.ones(4, 4)]))
    with pytest.raises(AssertionError, match="16 × 16"):
        BlockSparseTensor(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 1))
    with pytest.raises(NotImplementedError, match="added to a sparse one"):
        made(SparseCSRTensor) + 1
    with pytest.raises(NotImplementedError, match="no mul"):
        made(BlockSparseTensor) * 2
