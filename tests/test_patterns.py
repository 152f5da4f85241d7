"""Every pattern against its definition, one coefficient at a time; chance against counts; golden layouts."""

import math
import re
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import xfn
from benchmarks.measure import peak_bytes
from xfn import KeyRequired, ShapeError, bias, layout, patterns, random

Place = tuple[int, ...]


def places(*sizes: int) -> list[Place]:
    """The coordinates of every token of a grid, row by row."""
    return list(product(*map(range, sizes)))


def table(rule: Callable[[Any, Any], object], tokens: list[Any]) -> Tensor:
    return torch.tensor([[rule(a, b) for b in tokens] for a in tokens])


def distance(a: Place, b: Place, p: float, weights: tuple[float, ...] = (1, 1, 1)) -> float:
    gaps = [abs(w * (x - y)) for x, y, w in zip(a, b, weights, strict=False)]
    if p == 0:
        return float(sum(gap != 0 for gap in gaps))
    return max(gaps) if p == math.inf else float(sum(gap**p for gap in gaps) ** (1 / p))


GRIDS = [(5,), (3, 4), (4, 1), (2, 3, 2)]


@pytest.mark.parametrize("sizes", GRIDS, ids=str)
@pytest.mark.parametrize("p", [0, 0.5, 1, 2, 3, math.inf])
def test_distances_on_a_grid(sizes: Place, p: float) -> None:
    for weights in (None, (1.0, 0.0, 2.0)[: len(sizes)]):
        want = table(lambda a, b: distance(a, b, p, weights or (1, 1, 1)), places(*sizes))
        torch.testing.assert_close(patterns.local_nd_distance(*sizes, p=p, weights=weights), want.float())


@pytest.mark.parametrize("sizes", GRIDS, ids=str)
def test_patterns_on_a_grid(sizes: Place) -> None:
    grid = places(*sizes)
    for p, far in product([0, 1, 2, math.inf], [0, 1, 1.5, 2, 3]):
        want = table(lambda a, b: distance(a, b, p) < far - 1e-9, grid)
        assert torch.equal(patterns.local_nd(*sizes, distance=far, p=p), want)
    gauss = table(lambda a, b: math.exp(-(distance(a, b, 2) ** 2) / (2 * 1.5**2)), grid)
    torch.testing.assert_close(patterns.local_nd_gaussian(*sizes, sigma=1.5), gauss.float())
    lines = table(lambda a, b: sum(x != y for x, y in zip(a, b, strict=True)) <= 1, grid)
    assert torch.equal(patterns.axial_nd(*sizes), lines)


def test_what_has_two_dims() -> None:
    h, w = 3, 4
    assert torch.equal(patterns.axial_2d(h, w), patterns.axial_nd(h, w))
    assert torch.equal(patterns.local_2d(h, w, 2, p=1), patterns.local_nd(h, w, distance=2, p=1))
    assert torch.equal(patterns.local_2d_gaussian(h, w, 2.0), patterns.local_nd_gaussian(h, w, sigma=2.0))
    assert torch.equal(patterns.local_2d_distance(h, w, 1), patterns.local_nd_distance(h, w, p=1))
    rows = table(lambda a, b: float(abs(a[0] - b[0])), places(h, w))
    columns = table(lambda a, b: float(abs(a[1] - b[1])), places(h, w))
    assert torch.equal(patterns.horizontal_axial_2d_distance(h, w), rows)
    assert torch.equal(patterns.vertical_axial_2d_distance(h, w), columns)


def test_what_is_exactly_too_far_is_hidden() -> None:
    """Powers are compared, so no root rounds a distance below its bound."""
    for p in (2, 3, 5, 7):
        for far in range(1, 40):
            assert patterns.local_nd(60, distance=far, p=p)[0].sum() == far


@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_dilated(k: int) -> None:
    want = table(lambda a, b: (a[0] - b[0]) % k == 0 and (a[1] - b[1]) % k == 0, places(4, 5))
    assert torch.equal(patterns.dilated_2d(4, 5, k), want)


def centre(i: int, window: int, shift: int) -> int:
    """The nearest window centre, of those from the one that covers token 0 on."""
    centres = [shift - window + window / 2 + n * window for n in range(10)]
    return min(range(10), key=lambda n: abs(i + 0.5 - centres[n]))


@pytest.mark.parametrize(("h", "w", "window", "shift"), [(4, 4, 2, 1), (4, 6, 2, 0), (6, 6, 3, 2), (5, 7, 4, 3)])
def test_swin_windows_are_those_of_the_nearest_centre(h: int, w: int, window: int, shift: int) -> None:
    def same(a: Place, b: Place) -> bool:
        return all(centre(x, window, shift) == centre(y, window, shift) for x, y in zip(a, b, strict=True))

    assert torch.equal(patterns.swin(h, w, window, shift), table(same, places(h, w)))


def test_a_shifted_corner_is_alone() -> None:
    seen = patterns.swin(4, 4, 2, 1)
    assert seen[0].nonzero().flatten().tolist() == [0]
    assert seen[5].nonzero().flatten().tolist() == [5, 6, 9, 10]


def test_patterns_on_a_sequence() -> None:
    n = list(range(9))
    for window in (1, 3, 5, 21):
        assert torch.equal(patterns.local_1d(9, window), table(lambda a, b: abs(a - b) <= window // 2, n))
    assert torch.equal(patterns.causal_1d(9), table(lambda a, b: b <= a, n))
    marked = torch.tensor([i in (2, 7) for i in n])
    assert torch.equal(patterns.global_token(marked), table(lambda a, b: a in (2, 7) or b in (2, 7), n))


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 16])
def test_alibi(heads: int) -> None:
    power = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-8 * (i + 1) / (2 * power)) for i in range(2 * power)][::2][: heads - power]
    torch.testing.assert_close(patterns.alibi_slopes(heads), torch.tensor(slopes))
    found = patterns.alibi(12, heads, 0.4)
    assert found.shape == (heads, 12, 12)
    for h, slope in enumerate(slopes):
        assert torch.equal(found[h], table(lambda a, b: slope * abs(a - b) < 0.4, list(range(12))))


def test_what_alibi_hides_has_little_weight() -> None:
    added = bias.alibi(patterns.alibi_slopes(4)).materialize(16, 16)
    assert torch.equal(patterns.alibi(16, 4, 1.0), added > -1.0)


# Chance.


def test_random_has_its_density_and_its_key() -> None:
    found = patterns.random(200, 0.1, random.key(3))
    assert abs(found.float().mean() - 0.1) < 4 * math.sqrt(0.09 / 200**2)
    assert torch.equal(found, patterns.random(200, 0.1, random.key(3)))
    assert not torch.equal(found, patterns.random(200, 0.1, random.key(4)))
    assert patterns.random(20, 0.0, random.key(3)).sum() == 0


@pytest.mark.parametrize("nnz", [0, 1, 7, 12])
def test_random_from_probability_draws_as_many_as_it_says(nnz: int) -> None:
    prob = torch.arange(16.0).reshape(4, 4) % 4
    found = patterns.random_from_probability(prob, nnz, random.key(1))
    assert found.sum() == nnz
    assert not (found & (prob == 0)).any()


def test_random_from_probability_draws_one_after_the_other() -> None:
    """The chance of each pair, first one and then another of those left, against how often it is drawn."""
    weight = [1.0, 2.0, 3.0, 4.0]
    draws = 1500
    keys = random.split(random.key(0), draws)
    drawn = torch.stack([patterns.random_from_probability(torch.tensor([weight]), 2, key)[0] for key in keys])
    for i, j in [(0, 1), (0, 3), (1, 2), (2, 3)]:
        a, b = weight[i] / 10, weight[j] / 10
        want = a * b / (1 - a) + b * a / (1 - b)
        share = (drawn[:, i] & drawn[:, j]).float().mean().item()
        assert abs(share - want) < 4 * math.sqrt(want * (1 - want) / draws)


@pytest.mark.parametrize("causal", [False, True])
def test_places_by_chance_are_as_many_as_asked_and_never_ahead(causal: bool) -> None:
    n, count = 12, 3
    found = patterns.bigbird(n, window=1, hubs=0, random=count, causal=causal, key=random.key(0))
    for m in range(n):
        seen = set(found[m].nonzero().flatten().tolist())
        may = m + 1 if causal else n
        assert max(seen) < may
        assert min(count, may) <= len(seen) <= min(count, may) + 1  # oneself is seen in any case
    wide = patterns.variable(n, windows=[1], hubs=[], random=count, causal=causal, key=random.key(0))
    assert torch.equal(wide, found)


# Layouts of the sparse transformers.

SAME = "11111111 11100000 11110000 10111000 10011100 10001110 10000111 10000011"
GOLDEN = {
    "fixed": (patterns.fixed(8), "11110001 " * 4 + "00011111 " * 4),
    "fixed, causal": (
        patterns.fixed(8, causal=True),
        "10000000 11000000 11100000 11110000 00011000 00011100 00011110 00011111",
    ),
    "fixed, second group": (patterns.fixed(8, group=1), "11110010 " * 4 + "00101111 " * 4),
    "fixed, short window": (patterns.fixed(10), "1111000101 " * 4 + "0001111101 " * 4 + "0001000111 " * 2),
    "variable": (patterns.variable(8), "11110000 " * 4 + "10001111 " * 4),
    "longformer": (patterns.longformer(8), SAME),
    "bigbird": (patterns.bigbird(8, random=0), SAME),
    "bigbird, causal": (
        patterns.bigbird(8, random=0, causal=True),
        "10000000 11000000 11100000 10110000 10011000 10001100 10000110 10000011",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_layouts(name: str) -> None:
    found, want = GOLDEN[name]
    assert " ".join("".join(str(int(x)) for x in row) for row in found) == want.strip()


@pytest.mark.parametrize("length", [1, 5, 8, 11])
@pytest.mark.parametrize(("summary", "group"), [(1, 0), (2, 1)])
def test_fixed_by_its_definition(length: int, summary: int, group: int) -> None:
    """Summaries of whole windows stand in them; that of a short last one may be clamped to the end."""
    first = 4 - (1 + group) * summary
    whole = {w + first + i for w in range(0, length - length % 4, 4) for i in range(summary)}
    if rest := length % 4:
        start = max(0, min(length - rest + first, length - summary))
        whole |= set(range(start, min(start + summary, length)))
    for causal, horizontal in [(False, False), (True, False), (False, True)]:
        want = table(
            lambda m, n: (m // 4 == n // 4 or n in whole or (horizontal and m in whole)) and (n <= m or not causal),
            list(range(length)),
        )
        found = patterns.fixed(length, 4, summary, group, causal=causal, horizontal=horizontal)
        assert torch.equal(found, want)


def test_variable_windows_and_listed_places() -> None:
    own = [0, 1, 1, 2, 2, 2, 3, 3, 3, 4]
    for causal, horizontal in [(False, False), (True, False), (False, True)]:
        want = table(
            lambda m, n: (own[m] == own[n] or n in (4, 7) or (horizontal and m in (4, 7))) and (n <= m or not causal),
            list(range(10)),
        )
        found = patterns.variable(10, [1, 2, 3], [4, 7], causal=causal, horizontal=horizontal)
        assert torch.equal(found, want)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 4, 9])
def test_places_that_see_all_and_are_seen_by_all(length: int, causal: bool) -> None:
    hubs = {0, length - 1}
    want = table(
        lambda m, n: (abs(m - n) <= 2 or m in hubs or n in hubs) and (n <= m or not causal), list(range(length))
    )
    assert torch.equal(patterns.longformer(length, 5, sorted(hubs), causal=causal), want)
    count = min(2, length)
    want = table(
        lambda m, n: (abs(m - n) <= 1 or m < count or n < count) and (n <= m or not causal), list(range(length))
    )
    assert torch.equal(patterns.bigbird(length, 3, count, 0, causal=causal), want)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("count", [1, 4, 8, 11])
def test_layouts_of_the_same_names_have_the_same_blocks(count: int, causal: bool) -> None:
    M, hubs = 16 * count - 3, (0, count - 1)
    assert torch.equal(
        layout.bigbird(M, block=16, random=0, causal=causal).blocks[0], patterns.bigbird(count, random=0, causal=causal)
    )
    assert torch.equal(
        layout.longformer(M, block=16, hubs=hubs, causal=causal).blocks[0],
        patterns.longformer(count, hubs=hubs, causal=causal),
    )
    assert torch.equal(
        layout.variable(M, block=16, windows=(1, 2, 3), hubs=hubs, causal=causal).blocks[0],
        patterns.variable(count, (1, 2, 3), hubs, causal=causal),
    )
    for verts, vertsize in ((4, 1), (2, 2), (1, 4)):
        found = layout.fixed(M, block=16, window=64, verts=verts, vertsize=vertsize, heads=4, causal=causal).blocks
        want = [patterns.fixed(count, 4, vertsize, h % verts, causal=causal) for h in range(4)]
        assert torch.equal(found, torch.stack(want))
    key = random.key(4)
    assert torch.equal(
        layout.bigbird(M, block=16, heads=2, causal=causal, key=key).blocks,
        torch.stack([patterns.bigbird(count, causal=causal, key=random.fold_in(key, h)) for h in range(2)]),
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [(5, 9), (9, 5), (3, 1), (0, 4)], ids=str)
def test_queries_and_keys_of_other_numbers_are_a_corner_of_the_square(length: tuple[int, int], causal: bool) -> None:
    """But for the summary of a short last window, which ends with the keys."""
    size, (rows, columns) = max(length), length
    for make in (
        lambda n: patterns.variable(n, [1, 2, 3], [0, (1, 3)], causal=causal, horizontal=not causal),
        lambda n: patterns.longformer(n, 3, [0, 2], causal=causal),
        lambda n: patterns.bigbird(n, 3, 2, 0, causal=causal),
    ):
        assert torch.equal(make(length), make(size)[:rows, :columns])
    own = [(x - x % 4, x - x % 4 + 4) for x in range(size)]
    ends = {min(first + 4, columns) for first, _ in own[:columns]}
    summaries = {n for end in ends for n in (end - 1, end - 2) if n >= 0}
    want = torch.tensor([[(own[m] == own[n] or n in summaries) and (n <= m or not causal) for n in range(columns)]
                         for m in range(rows)]).reshape(length).bool()  # fmt: skip
    assert torch.equal(patterns.fixed(length, 4, 2, causal=causal), want)


# Blocks.


@pytest.mark.parametrize(("M", "N"), [(8, 8), (7, 5), (1, 9), (0, 4)])
def test_pool_and_expand(M: int, N: int) -> None:
    mask = random.bernoulli(random.key(0), 0.15, (2, M, N))
    blocks = patterns.pool(mask, 4)
    assert blocks.shape == (2, math.ceil(M / 4), math.ceil(N / 4))
    for h, i, j in product(*map(range, blocks.shape)):
        assert blocks[h, i, j] == mask[h, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].any()
    whole = patterns.expand(blocks, 4, M, N)
    assert whole.shape == mask.shape
    assert bool((whole | ~mask).all())
    assert torch.equal(patterns.pool(whole, 4), blocks)


def test_gather_takes_the_blocks_in_their_order() -> None:
    x, blocks = torch.randn(3, 2, 6, 4), random.bernoulli(random.key(0), 0.5, (2, 3, 2))
    want = [x[:, h, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] for h, i, j in blocks.nonzero().tolist()]
    assert torch.equal(patterns.gather(x, blocks, 2), torch.stack(want, 1))
    with pytest.raises(ShapeError, match=re.escape("are no layout")):
        patterns.gather(x, blocks[:1], 2)


# Use.


def test_combined_patterns_are_masks() -> None:
    """Patterns for images, joined, and attention that keeps to them, and so does its gradient."""
    h, w = 4, 5
    likely = patterns.local_2d_gaussian(h, w, sigma=2)
    chance = patterns.random_from_probability(likely, int((h * w) ** 2 * 0.05), random.key(0))
    mask = patterns.axial_2d(h, w) | patterns.local_2d(h, w, distance=2, p=2.0) | chance
    q, k, v = torch.randn(3, h * w, 2, 8, dtype=torch.float64)
    logits = torch.einsum("mhk,nhk->hmn", q, k) / math.sqrt(8)
    want = torch.einsum("hmn,nhk->mhk", logits.masked_fill(~mask, -torch.inf).softmax(-1), v)
    torch.testing.assert_close(xfn.attention(q, k, v, mask), want)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: patterns.local_2d(n, n, 5),
        lambda n: patterns.local_2d_gaussian(n, n),
        lambda n: patterns.axial_2d(n, n),
        lambda n: patterns.swin(n, n, 4, 2),
        lambda n: patterns.fixed(n * n),
        lambda n: patterns.pool(patterns.causal_1d(n * n), 16),
        lambda n: patterns.random(n * n, 0.1, random.key(0)),
        lambda n: patterns.random_from_probability(torch.ones(n * n, n * n), n**4 // 20, random.key(0)),
    ],
)
def test_nothing_is_larger_than_the_distances(make: Callable[[int], Tensor]) -> None:
    assert peak_bytes(lambda: make(40)) <= 3 * 8 * 40**4


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: patterns.axial_nd(), ValueError, "at least one size"),
        (lambda: patterns.axial_2d(0, 3), ValueError, "at least 1, but got 0"),
        (lambda: patterns.axial_2d(2.0, 3), TypeError, "is an integer, but got 2.0"),
        (lambda: patterns.local_nd_distance(2, 3, p=-1), ValueError, "p=-1 is no norm"),
        (lambda: patterns.local_nd_distance(2, 3, weights=[1]), ValueError, "2 sizes, but 1 weights"),
        (lambda: patterns.local_2d_gaussian(2, 3, 0), ValueError, "sigma=0 must be positive"),
        (lambda: patterns.dilated_2d(2, 3, 0), ValueError, "k must be at least 1"),
        (lambda: patterns.swin(4, 4, 2, 2), ValueError, "shift=2 must be an integer from 0 to window − 1 = 1"),
        (lambda: patterns.local_1d(4, 2), ValueError, "window=2 has no middle"),
        (lambda: patterns.global_token(torch.ones(3)), TypeError, "write mask.bool()"),
        (lambda: patterns.global_token(torch.ones(3, 1).bool()), ShapeError, "one boolean per token"),
        (lambda: patterns.random(4, 1.5, random.key(0)), ValueError, "density=1.5 is no probability"),
        (lambda: patterns.random_from_probability(torch.eye(2).bool(), 1, random.key(0)), TypeError, "prob.float()"),
        (lambda: patterns.random_from_probability(-torch.eye(2), 1, random.key(0)), ValueError, "at least 0"),
        (lambda: patterns.random_from_probability(torch.eye(2), 3, random.key(0)), ValueError, "from 0 to 2"),
        (lambda: patterns.alibi_slopes(0), ValueError, "heads=0"),
        (lambda: patterns.fixed(8, 4, 3), ValueError, "summary=3 must divide window=4"),
        (lambda: patterns.fixed(8, 4, 2, 2), ValueError, "group=2 must be one of the 2"),
        (lambda: patterns.fixed(8, causal=True, horizontal=True), ValueError, "choose one"),
        (lambda: patterns.variable(8, []), ValueError, "at least one size"),
        (lambda: patterns.variable(8, hubs=[1, 8]), ValueError, "hub 8 is not among the 8 places"),
        (lambda: patterns.longformer(8, hubs=[-1]), ValueError, "hub -1 is not"),
        (lambda: patterns.bigbird(8), KeyRequired, "pass key=random.key(seed)"),
        (lambda: patterns.bigbird(8, random=9), ValueError, "random=9 must lie between 0 and length=8"),
        (lambda: patterns.bigbird(8, hubs=9, random=0), ValueError, "hubs=9"),
    ],
)
def test_what_is_refused(call: Callable[[], Tensor], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        call()
