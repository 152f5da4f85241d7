"""A pattern is its mask, whatever is done to it; and the choice that attention makes changes no result."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.utils import _pytree as tree

import xfn
from xfn import ShapeError, bias, layout, random, sparsity
from xfn._core import choice
from xfn._core.choice import SIZES
from xfn._core.tables import expand
from xfn.kernels.cpu.mask import COUNT, CUT, Counted
from xfn.patterns import expand as expand_blocks
from xfn.patterns import pool
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

WAYS = ("entries", *SIZES)


def tiled(*shape: int, size: int = 8) -> Tensor:
    """A mask some of whose tiles are dead, some full, and some live in part."""
    *lead, M, N = shape
    kind = random.randint(random.key(5), (*lead, -(-M // size), -(-N // size)), 0, 3)
    kind = kind.repeat_interleave(size, -2).repeat_interleave(size, -1)[..., :M, :N]
    return (kind == 1) | (kind == 2) & drawn(*shape)


def prefer(way: str | int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mask is looked at, and takes its entries, or block tiles of one size."""
    tile = {size: float(size != way) * 9 for size in SIZES}
    monkeypatch.setattr(choice, "LEAST", 0)
    monkeypatch.setitem(choice.PRICES, "cpu", choice.Prices(tile, 0.0 if way == "entries" else 9.0, 0.0, 1.3))


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What attention walks from now on: how many live tiles, or how many entries."""
    seen: list[tuple[str, int]] = []
    layout, entries = Counted.layout, Counted.entries

    def tiles_of(self: Counted) -> Any:
        found = layout(self)
        seen.append(("block tiles", int(found[0].sum())))  # type: ignore[union-attr]
        return found

    def entries_of(self: Counted, *, by_column: bool) -> Any:
        found = entries(self, by_column=by_column)
        seen.append(("entries", int(found[0][..., -1].sum())))  # type: ignore[index]
        return found

    monkeypatch.setattr(Counted, "layout", tiles_of)
    monkeypatch.setattr(Counted, "entries", entries_of)
    return seen


@pytest.mark.parametrize("density", [0.0, 0.03, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 9), (1, 64, 64), (2, 65, 130), (1, 3, 2100), (1, 130, 8)], ids=str)
def test_a_mask_is_counted_and_cut_alike_everywhere(shape: tuple[int, int, int], density: float) -> None:
    mask = drawn(*shape, density=density)
    ends, tiles, totals = COUNT(mask)
    found = choice.Census.of(mask)
    assert totals.tolist() == [found.entries, *found.live]
    assert torch.equal(ends, mask.sum(-1).cumsum(-1).int())
    for size in SIZES:
        want = layout.from_mask(mask, size)
        blocks, index, words = CUT(mask, tiles, size)
        assert torch.equal(blocks, want.blocks)
        assert torch.equal(expand(blocks, index, words, size, *shape[1:]), mask)
        assert found.tiles(size) == want.density


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(19, 27), (4, 19, 27), (3, 1, 19, 27), (3, 4, 19, 27)], ids=str)
def test_every_way_gives_the_same(
    shape: tuple[int, ...], way: str | int, p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask, key = tiled(*shape), random.key(1) if p else None
    q, k, v = (torch.randn(3, n, h, 6, dtype=torch.float64) for n, h in ((19, 4), (27, 2), (27, 2)))
    prefer(way, monkeypatch)
    seen = watched(monkeypatch)

    def results(backend: str | None) -> Any:
        def f(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            out, lse = xfn.attention_with_lse(q, k, v, mask, p, key=key, backend=backend)
            return out, torch.where(lse == -torch.inf, 0, lse)

        slope, tangents = func.grad(loss(f), (0, 1, 2)), (k.mean() * q, k, v)
        yield f(q, k, v)
        yield slope(q, k, v)
        yield func.jvp(slope, (q, k, v), tangents)
        yield func.jvp(f, (q, k, v), (q, k, v))
        yield func.jvp(lambda *x: func.jvp(f, x, tangents)[1], (q, k, v), (q, k, v))
        if len(shape) == 2:
            yield func.vmap(slope)(q, k, v)

    want = list(results("reference"))
    assert not seen
    for got, right in zip(results(None), want, strict=True):
        agree(got, right)
    counts = {("entries", int(mask.sum()))}
    if way != "entries":
        counts = {("block tiles", int(pool(mask, int(way)).sum()))}
    assert set(seen) == counts


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("other", [bias.causal(), bias.alibi(torch.ones(2).double()), None])
def test_a_mask_that_is_not_alone_takes_tiles(other: Any, way: str | int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is not whole takes dense ones."""
    prefer(way, monkeypatch)
    q = torch.randn(20, 2, 3, dtype=torch.float64)
    mask = tiled(20, 20) if other is not None else tiled(20, 1)
    seen = watched(monkeypatch)
    both = bias.Bias.of(mask) if other is None else bias.Bias.of(mask) + other
    agree(xfn.attention(q, q, q, both), xfn.attention(q, q, q, both, backend="reference"))
    assert [way for way, _ in seen] == ["block tiles"] * (other is not None and way != "entries")


@pytest.mark.parametrize("way", WAYS)
def test_a_mask_may_lie_anyhow_in_memory(way: str | int, monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(way, monkeypatch)
    q = torch.randn(2, 70, 2, 3, dtype=torch.float64)
    mask = tiled(2, 70, 70)
    for other in (mask.mT.contiguous().mT, mask.repeat_interleave(2, -1)[..., ::2], mask[:1].expand(2, 70, 70)):
        agree(xfn.attention(q, q, q, other), xfn.attention(q, q, q, other, backend="reference"))


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_finite_stays_behind_a_mask(way: str | int, monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(way, monkeypatch)
    q = torch.randn(1, 19, 2, 3, dtype=torch.float64)
    mask = tiled(19, 19)
    q[0, 3], q[0, 11, 0, 1] = torch.nan, torch.inf
    got, want = (xfn.attention(q, q, q, mask, backend=backend) for backend in (None, "reference"))
    assert torch.equal(got.isnan(), want.isnan())
    agree(got.nan_to_num(), want.nan_to_num())


S = 512
BANDED = torch.ones(S, S).tril().triu(-100).bool()
CHOSEN = {
    "sparse": (drawn(S, S, density=0.05), "entries"),
    "a tenth": (drawn(S, S, density=0.1), "entries"),
    "a third": (drawn(S, S, density=0.3), "dense tiles"),
    "all": (drawn(S, S, density=1.0), "dense tiles"),
    "diagonal": (torch.eye(S).bool(), "entries"),
    "segments": (expand_blocks(torch.eye(8).bool(), 64), "block tiles"),
    "blocks of 64": (layout.random(S, block=64, density=0.25, key=random.key(0)).to_mask(), "block tiles"),
    "blocks of 16": (layout.random(S, block=16, density=0.25, key=random.key(0)).to_mask(), "block tiles"),
    "bigbird": (layout.bigbird(S, block=32, key=random.key(0)).to_mask(), "block tiles"),
    "banded": (BANDED, "block tiles"),
    "blocks, thinned": (expand_blocks(torch.eye(8).bool(), 64) & drawn(S, S, density=0.5), "block tiles"),
    "per head": (layout.random(S, block=64, density=0.2, heads=8, key=random.key(0)).to_mask(), "block tiles"),
    "a few queries": (torch.arange(S * 256).expand(4, -1) % 4096 < 64, "block tiles"),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_the_choice_is_explained_and_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, takes = CHOSEN[name]
    seen = watched(monkeypatch)
    shared = 8 if mask.dim() == 2 else 1
    told = sparsity.explain(mask, shared)
    assert told.takes == takes
    assert str(told).startswith(
        f"{takes}: {told.density:.1%} of the coefficients exist, in {told.tiles:.1%} of the tiles"
    )
    (M, N), half = mask.shape[-2:], torch.bfloat16
    q, k = torch.randn(M, 8, 8, dtype=half, requires_grad=True), torch.randn(N, 8, 8, dtype=half)
    xfn.attention(q, k, k, mask).sum().backward()
    count = {"dense tiles": 0, "entries": int(mask.sum()), "block tiles": int(pool(mask, told.block).sum())}[takes]
    assert seen == [(takes, count)] * (2 * (count > 0))


def test_what_is_not_looked_at_is_explained() -> None:
    assert "is too small to be looked at" in sparsity.explain(drawn(20, 20)).why
    assert "write sparse_attention(csr, q, k, v)" in sparsity.explain(drawn(300, 300), device="cuda").why
    assert sparsity.explain(drawn(300, 300, density=0.1), shared=1).takes == "dense tiles"
