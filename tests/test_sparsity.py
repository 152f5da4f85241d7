"""A pattern is its mask, whatever is done to it; and the choice that attention makes changes no result."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.utils import _pytree as tree

import xfn
from xfn import ShapeError, bias, random, sparsity
from xfn._core import choice
from xfn.kernels.cpu import attention as kernels
from xfn.kernels.cpu import sparse_attention
from xfn.sparsity import Csr

from .cases import agree
from .transforms import loss

SHAPES = ((5, 7), (1, 1), (3, 4, 6), (2, 3, 5, 4), (0, 4), (4, 0), (2, 0, 3), (3, 1, 9))


def drawn(*shape: int, density: float = 0.4) -> Tensor:
    return random.bernoulli(random.key(len(shape)), density, shape)


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_pattern_is_its_mask(shape: tuple[int, ...], density: float) -> None:
    mask = drawn(*shape, density=density)
    csr = Csr.from_mask(mask)
    assert torch.equal(csr.to_mask(), mask)
    assert torch.equal(csr.transpose().to_mask(), mask.mT)
    assert csr.shape == mask.shape[-2:]
    assert csr.density == (mask.double().mean().item() if mask.numel() else 0)
    assert csr.columns.shape[-1] == (mask.sum((-2, -1)).max().item() if mask.shape[:-2].numel() else 0)
    assert all(t.dtype == torch.int32 for t in tree.tree_leaves(csr))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_transposing_twice_gives_the_same_tables(shape: tuple[int, ...]) -> None:
    csr = Csr.from_mask(drawn(*shape))
    again = csr.transpose().transpose()
    assert all(torch.equal(a, b) for a, b in zip(tree.tree_leaves(again), tree.tree_leaves(csr), strict=True))


def test_values_follow_their_entries_through_a_transpose() -> None:
    csr = Csr.from_mask(drawn(6, 5))
    values = torch.randn(3, csr.columns.shape[-1])
    turned = csr.transpose().to_dense(values[:, csr.order.long()])
    assert torch.equal(turned, csr.to_dense(values).mT)


def test_coordinates_may_come_in_any_order_and_twice() -> None:
    mask = drawn(6, 5)
    m, n = mask.nonzero().flip(0).repeat(2, 1).unbind(-1)
    csr = Csr.from_coo(m, n, (6, 5))
    want = Csr.from_mask(mask)
    assert all(torch.equal(a, b) for a, b in zip(tree.tree_leaves(csr), tree.tree_leaves(want), strict=True))


def test_patterns_are_mapped_like_any_tree() -> None:
    masks, q = drawn(3, 2, 5, 5), torch.randn(3, 5, 2, 4, dtype=torch.float64)
    csr = Csr.from_mask(masks)
    mapped = func.vmap(lambda csr, q: xfn.sparse_attention(csr, q, q, q))(csr, q)
    agree(mapped, torch.stack([xfn.attention(q[i], q[i], q[i], masks[i]) for i in range(3)]))
    compiled = torch.compile(lambda csr, q: xfn.sparse_attention(csr, q, q, q), fullgraph=True)
    agree(compiled(csr, q), xfn.attention(q, q, q, masks))


MASK = torch.ones(2, 3, dtype=torch.bool)
ONE, TWO = torch.tensor([0, 1]), torch.tensor([2, 3])


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: Csr.from_mask(MASK.float()), TypeError, "but got torch.float32: write mask.bool()"),
        (lambda: Csr.from_mask(MASK[0]), ShapeError, "mask [..., M, N] needs at least 2 dims, but its shape is [3]"),
        (lambda: Csr.from_coo(ONE, TWO, (2, 3)), ShapeError, "columns go from 2 to 3, but N=3: they lie in [0, N)"),
        (lambda: Csr.from_coo(ONE, TWO[:1], (2, 3)), ShapeError, "of one length, but got [2] and [1]"),
        (lambda: Csr.from_coo(ONE, TWO.float(), (2, 3)), TypeError, "a tensor of integers, but got torch.float32"),
        (lambda: sparsity.explain(MASK.int()), TypeError, "a mask is boolean"),
        (lambda: sparsity.explain(MASK[0]), ShapeError, "needs at least 2 dims"),
    ],
)
def test_errors_say_what_to_write(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)):
        call()


# The automatic choice.


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mask is looked at, and takes its entries."""
    monkeypatch.setattr(choice, "LEAST", 0)
    monkeypatch.setattr(kernels, "LEAST", 0)
    monkeypatch.setitem(choice.PRICES, "cpu", choice.Prices(0.0, 0.0))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the entries' kernels run, from now on."""
    seen: list[str] = []
    for name in ("forward", "backward"):
        function = getattr(sparse_attention, name)

        def run(*args: Any, name: str = name, function: Any = function, **options: Any) -> Any:
            seen.append(name)
            return function(*args, **options)

        monkeypatch.setattr(sparse_attention, name, run)
    return seen


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(9, 11), (4, 9, 11), (3, 1, 9, 11), (3, 4, 9, 11)], ids=str)
def test_entries_of_a_mask_give_the_same(shape: tuple[int, ...], p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, key = drawn(*shape), random.key(1) if p else None
    q, k, v = (torch.randn(3, n, h, 6, dtype=torch.float64) for n, h in ((9, 4), (11, 2), (11, 2)))
    seen = counted(monkeypatch)

    def results(backend: str | None) -> Any:
        def f(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            out, lse = xfn.attention_with_lse(q, k, v, mask, p, key=key, backend=backend)
            return out, torch.where(lse == -torch.inf, 0, lse)

        slope = func.grad(loss(f), (0, 1, 2))
        yield f(q, k, v)
        yield slope(q, k, v)
        yield func.jvp(slope, (q, k, v), (k.mean() * q, k, v))
        yield func.jvp(f, (q, k, v), (q, k, v))
        if len(shape) == 2:
            yield func.vmap(slope)(q, k, v)

    want = list(results("reference"))
    assert not seen
    for got, right in zip(results(None), want, strict=True):
        agree(got, right)
    assert {"forward", "backward"} == set(seen)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("other", [bias.causal(), bias.alibi(torch.ones(2).double()), None])
def test_a_mask_that_is_not_alone_or_not_whole_takes_dense_tiles(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(5, 2, 3, dtype=torch.float64)
    mask = drawn(5, 5) if other is not None else drawn(5, 1)
    seen = counted(monkeypatch)
    both = bias.Bias.of(mask) if other is None else bias.Bias.of(mask) + other
    agree(xfn.attention(q, q, q, both), xfn.attention(q, q, q, both, backend="reference"))
    assert not seen


@pytest.mark.usefixtures("eager")
def test_a_mask_may_lie_anyhow_in_memory() -> None:
    q = torch.randn(2, 70, 2, 3, dtype=torch.float64)
    mask = drawn(2, 70, 70)
    for other in (mask.mT.contiguous().mT, mask.repeat_interleave(2, -1)[..., ::2], mask[:1].expand(2, 70, 70)):
        agree(xfn.attention(q, q, q, other), xfn.attention(q, q, q, other, backend="reference"))


def test_the_choice_is_explained_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    q, seen = torch.randn(300, 8, 4), counted(monkeypatch)
    for density, takes in ((0.05, "entries"), (0.1, "entries"), (0.3, "dense tiles"), (1.0, "dense tiles")):
        mask = drawn(300, 300, density=density)
        told = sparsity.explain(mask)
        assert told.takes == takes
        assert str(told).startswith(f"{takes}: {told.density:.1%} of the coefficients exist; ")
        seen.clear()
        xfn.attention(q, q, q, mask)
        assert seen == ["forward"] * (takes == "entries")
    assert "is too small to be looked at" in sparsity.explain(drawn(20, 20)).why
    assert "write sparse_attention(csr, q, k, v)" in sparsity.explain(drawn(300, 300), device="cuda").why
    assert sparsity.explain(drawn(300, 300, density=0.1), shared=1).takes == "dense tiles"
