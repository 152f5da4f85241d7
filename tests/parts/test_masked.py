"""Parts that attend under a mask of their own are attention under that mask, and cost what it leaves."""

import json
import re
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

import xfn
from xfn import bias, layout, patterns, random
from xfn.parts.attention.blocksparse import Blocksparse
from xfn.parts.attention.dot_product import DotProduct
from xfn.parts.attention.global_tokens import GlobalTokens
from xfn.parts.attention.local import Local
from xfn.parts.attention.random_pattern import RandomPattern
from xfn.parts.attention.sparse import Sparse

from ..cases import agree
from ..watch import watch


def drawn(M: int, N: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (random.fold_in(random.key(0), i) for i in range(3))
    keys = (M if N is None else N, 2, 4)
    return tuple(random.normal(key, (2, *s), dtype=torch.float64) for key, s in ((q, (M, 2, 4)), (k, keys), (v, keys)))  # type: ignore[return-value]


def visible(part: Any, M: int, N: int | None = None, bias: Any = None) -> Tensor:
    """Which keys weigh anything: read off one-hot values. ``[M, N]``."""
    q, k, _ = drawn(M, N)
    hot = torch.eye(k.shape[-3], dtype=q.dtype)[:, None].expand(2, -1, 2, -1)
    seen: Tensor = (part.apply({}, q, k, hot, bias) > 0).any(0).any(-2)
    return seen


def test_dot_product_is_its_formula() -> None:
    q, k, v = drawn(5, 7)
    for scale in (None, 0.3):
        weights = (torch.einsum("bmhk,bnhk->bhmn", q, k) * (scale or 0.5)).softmax(-1)
        want = torch.einsum("bhmn,bnhv->bmhv", weights, v)
        agree(DotProduct(scale=scale).apply({}, q, k, v), want)


# Local.


def test_a_window_has_its_query_in_the_middle() -> None:
    assert torch.equal(visible(Local(5), 9), patterns.local_1d(9, 5))
    assert torch.equal(visible(Local(5), 9, bias=bias.causal()), patterns.local_1d(9, 5) & patterns.causal_1d(9))


@pytest.mark.parametrize("window", [1, 4, 20])
def test_a_causal_window_counts_the_query(window: int) -> None:
    seen = visible(Local(window, causal=True), 9)
    assert torch.equal(seen.sum(-1), torch.arange(1, 10).clamp(max=window))
    assert torch.equal(seen, patterns.causal_1d(9) & seen)


def test_a_window_stays_within_its_segment_and_finds_its_corner() -> None:
    seen = visible(Local(3), 6, bias=bias.segments([2, 4]))
    assert torch.equal(seen, patterns.local_1d(6, 3) & torch.block_diag(torch.ones(2, 2), torch.ones(4, 4)).bool())
    far = visible(Local(3), 6, 9, bias.segments([2, 4], [5, 4]))
    assert [row.nonzero().flatten().tolist() for row in far[2:]] == [[5, 6], [5, 6, 7], [6, 7, 8], [7, 8]]
    last = visible(Local(3, causal=True, corner="bottom-right"), 1, 8, bias.causal("bottom-right"))
    assert last.nonzero()[:, 1].tolist() == [5, 6, 7]


def test_a_window_is_an_interval() -> None:
    """So no kernel looks at what is far, and nobody holds a matrix."""
    normal = Local(5).seen(bias.causal()).resolve(9, 9)
    assert normal.dense is None
    assert (normal.hi - normal.lo).max() == 3  # type: ignore[operator]


# Tokens that all see, and chance.


def test_global_tokens_see_all_and_are_all_that_others_see() -> None:
    q, k, v = drawn(10)
    y, tokens = GlobalTokens((3, 7, 50)).apply({}, q, k, v), [3, 7]
    agree(y[:, tokens], xfn.attention(q, k, v)[:, tokens])
    agree(y[:, [0, 9]], xfn.attention(q[:, [0, 9]], k[:, tokens], v[:, tokens]))
    causal = GlobalTokens((3,)).apply({}, q, k, v, bias.causal())
    agree(causal[:, 3], xfn.attention(q, k, v, bias.causal())[:, 3])
    agree(causal[:, 5:], v[:, 3:4].expand(-1, 5, -1, -1))
    assert not causal[:, :3].any()
    assert not GlobalTokens(()).apply({}, q, k, v).any()


def test_chance_keeps_as_many_as_it_is_told() -> None:
    n, density = 300, 0.2
    mask = RandomPattern(density).mask(n, n, 1)
    assert abs(mask.double().mean().item() - density) < 3 * (density * (1 - density) / n**2) ** 0.5
    assert torch.equal(mask[:50, :70], RandomPattern(density).mask(50, 70, 1))
    assert torch.equal(mask, RandomPattern(density).mask(n, n, 1))
    assert not torch.equal(mask, RandomPattern(density, seed=1).mask(n, n, 1))
    q, k, v = drawn(20)
    agree(RandomPattern(1.0).apply({}, q, k, v), xfn.attention(q, k, v))


def test_who_sees_nothing_gets_zeros() -> None:
    part = RandomPattern(0.02)
    blind = ~part.mask(20, 20, 1).any(-1)
    y = part.apply({}, *drawn(20))
    assert 0 < blind.sum() < 20
    assert not y[:, blind].any()
    assert (y[:, ~blind] != 0).all()


# Patterns and layouts by name.

NUMBERS: dict[str, Any] = {
    "axial_2d": {"h": 4, "w": 6},
    "local_2d": {"h": 4, "w": 6, "distance": 2.0},
    "dilated_2d": {"h": 4, "w": 6},
    "swin": {"h": 4, "w": 6, "window": 2},
    "local_1d": {"window": 3},
    "causal_1d": {},
    "random": {"density": 0.05},
    "alibi": {"threshold": 0.1},
    "fixed": {"window": 3},
    "variable": {"windows": [2, 3], "hubs": [1, [4, 6]]},
    "longformer": {"hubs": [5]},
    "bigbird": {"random": 2},
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "extra", [None, bias.causal(), bias.alibi(torch.ones(2).double())], ids=["", "causal", "alibi"]
)
def test_a_named_pattern_is_a_mask(name: str, extra: Any) -> None:
    part, (q, k, v) = Sparse(name, NUMBERS[name], seed=4), drawn(24)
    mask = part.mask(24, 24, 2)
    agree(part.apply({}, q, k, v, extra), xfn.attention(q, k, v, bias.dense(mask) & bias.Bias.of(extra)))
    assert Sparse(**json.loads(json.dumps(asdict(part)))) == part
    if name not in ("random", "bigbird"):
        takes = {"length": 24} if "h" not in NUMBERS[name] else {}
        takes |= {"heads": 2} if name == "alibi" else {}
        assert torch.equal(mask, getattr(patterns, name)(**takes, **part.numbers))


def test_few_entries_are_walked_one_by_one() -> None:
    """And many in tiles, as is what a bias of data is added to."""
    q, k, v = drawn(40)
    ran = lambda *x: set(watch(lambda: Sparse(*x[:2]).apply({}, q, k, v, *x[2:])).counts)
    assert ran("local_1d", {"window": 3}) == {"sparse_attention_forward"}
    assert ran("local_1d", {"window": 3}, bias.causal()) == {"sparse_attention_forward"}
    assert ran("local_1d", {"window": 21}) == {"attention_forward"}
    assert ran("local_1d", {"window": 3}, torch.zeros(40).double()) == {"attention_forward"}


TILES: dict[str, Any] = {
    "dense": {},
    "causal": {},
    "local": {"window": 9},
    "strided": {"stride": 5},
    "fixed": {"window": 16},
    "random": {"density": 0.5, "heads": 2},
    "global_": {"tokens": [9]},
    "bigbird": {"window": 1},
    "longformer": {"hubs": [[1, 3]]},
    "variable": {"windows": [1, 2], "random": 1},
}


@pytest.mark.parametrize("name", TILES)
def test_a_named_layout_is_a_mask(name: str) -> None:
    part, (q, k, v) = Blocksparse(name, 8, TILES[name]), drawn(30)
    takes = {"key": random.key(0)} if name in ("random", "bigbird", "variable") else {}
    mask = getattr(layout, name)(30, block=8, **part.numbers, **takes).to_mask()
    agree(part.apply({}, q, k, v), xfn.attention(q, k, v, mask))
    agree(part.apply({}, q, k, v, bias.causal()), xfn.attention(q, k, v, bias.dense(mask).causal()))
    assert Blocksparse(**json.loads(json.dumps(asdict(part)))) == part


def test_every_layout_and_pattern_has_a_case() -> None:
    from xfn.parts._fields import functions

    assert set(TILES) == set(functions(layout, ("M",)))
    floating = {n for n in functions(patterns, ("length", "h")) if "distance" in n or "gaussian" in n}
    assert set(NUMBERS) == set(functions(patterns, ("length", "h"))) - floating


@pytest.mark.parametrize("tiles", [[[1, 0], [0, 1]], [[[True, False], [True, True]], [[1, 1], [0, 0]]]])
def test_tiles_may_be_listed(tiles: Any) -> None:
    part, (q, k, v) = Blocksparse(tiles, 8), drawn(13)
    mask = layout.Layout(torch.tensor(tiles).bool(), 8, (13, 13)).to_mask()
    agree(part.apply({}, q, k, v), xfn.attention(q, k, v, mask))
    assert Blocksparse(**json.loads(json.dumps(asdict(part)))) == part


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: Local(4), ValueError, "window=4 has no middle: it must be odd, or write causal=True"),
        (lambda: Local(corner="middle"), ValueError, "corner='middle' is neither of"),
        (lambda: GlobalTokens((-1,)), ValueError, "tokens=[-1] are no positions"),
        (lambda: RandomPattern(0.0), ValueError, "density=0.0 must lie in (0, 1]"),
        (lambda: DotProduct(p=1.0), ValueError, "p=1.0 is no probability of dropping"),
        (lambda: Sparse("bigbrid"), ValueError, "no pattern is called 'bigbrid'; there are bigbird, fixed"),
        (lambda: Sparse("local_1d"), TypeError, "pattern.local_1d needs numbers={'window': …}"),
        (lambda: Sparse("axial_2d", {"h": 2, "w": 2, "d": 2}), TypeError, "pattern.axial_2d has no ['d']; it has"),
        (lambda: Sparse("axial_2d", {"h": 2, "w": 2}).mask(5, 5, 1), xfn.ShapeError, "has 4 places, but there are 5"),
        (lambda: Sparse("local_2d_distance", {"h": 2, "w": 2}).mask(4, 4, 1), TypeError, "gives torch.float32"),
        (lambda: Blocksparse("fixd"), ValueError, "no layout is called 'fixd'; there are bigbird, global_"),
        (lambda: Blocksparse("local"), TypeError, "layout.local needs numbers={'window': …}"),
        (lambda: Blocksparse([[1]], numbers={"window": 1}), TypeError, "tiles that are listed take no numbers"),
        (lambda: Blocksparse([1, 0]), xfn.ShapeError, "blocks is [M/16, N/16]"),
        (lambda: Blocksparse(block=12), ValueError, "block=12 is not one of 8, 16"),
        (lambda: Blocksparse([[1]]).apply({}, *drawn(20)), xfn.ShapeError, "has M/16=1, but M=20 needs 2"),
    ],
)
def test_what_is_wrong_is_said(make: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)):
        make()
