"""One key, one draw: on every backend, in any tile, under any map."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.fx.experimental.proxy_tensor import make_fx

import xfn
from xfn import random
from xfn._core.errors import ShapeError
from xfn._core.philox import keep, philox, threshold
from xfn.kernels.tiled import grid
from xfn.sparsity import Csr

KEY = random.key(3)
DRAWS: dict[str, Any] = {
    "uniform": lambda key: random.uniform(key, (3, 5)),
    "uniform64": lambda key: random.uniform(key, (7,), -2.0, 3.0, dtype=torch.float64),
    "uniform16": lambda key: random.uniform(key, (7,), dtype=torch.bfloat16),
    "normal": lambda key: random.normal(key, (2, 3)),
    "normal64": lambda key: random.normal(key, (5,), dtype=torch.float64),
    "bernoulli": lambda key: random.bernoulli(key, 0.3, (9,)),
    "bernoulli each": lambda key: random.bernoulli(key, torch.tensor([0.0, 0.5, 1.0])),
    "randint": lambda key: random.randint(key, (6,), -3, 10),
    "permutation": lambda key: random.permutation(key, 8),
    "permutation of rows": lambda key: random.permutation(key, torch.arange(12).reshape(6, 2)),
    "split": lambda key: random.split(key, 3),
    "split shape": lambda key: random.split(key, (2, 3)),
    "fold_in": lambda key: random.fold_in(key, 2**40 + 1),
}
draws = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)

# Known answers of Random123's kat_vectors: rounds, counter, key, words.
ANSWERS = [
    (7, "00000000 00000000 00000000 00000000", "00000000 00000000", "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "4dfccaba 190a87f0 c47362ba b6b5242a"),
    (10, "00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("rounds", "counter", "key", "words"), ANSWERS)
def test_philox_gives_the_published_words(rounds: int, counter: str, key: str, words: str) -> None:
    c0, c1, c2, c3 = (torch.tensor(int(word, 16)) for word in counter.split())
    found = philox(torch.tensor([int(word, 16) for word in key.split()]), (c0, c1, c2, c3), rounds)
    assert " ".join(f"{word.item():08x}" for word in found) == words


@draws
def test_a_batch_draws_what_its_examples_draw(draw: Any) -> None:
    keys = random.split(KEY, 4)
    loop = torch.stack([draw(random.fold_in(KEY, i)) for i in range(4)])
    assert torch.equal(func.vmap(draw)(keys), loop)
    assert torch.equal(func.vmap(func.vmap(draw))(keys.reshape(2, 2, 2)), loop.reshape(2, 2, *loop.shape[1:]))


@draws
def test_compiled_draws_are_the_same(draw: Any) -> None:
    compiled = torch.compile(draw, fullgraph=True)(KEY)
    assert compiled.dtype == draw(KEY).dtype
    torch.testing.assert_close(compiled, draw(KEY), rtol=0, atol=1e-7 if compiled.is_floating_point() else 0)


@pytest.mark.parametrize("shape", [(2, 3), (8, 64)])
def test_compiled_dropping_is_the_same(shape: tuple[int, int]) -> None:
    """In the code of lanes, and in that of what is left of them."""
    heads, rows, x = torch.arange(1), torch.arange(shape[0]), torch.ones(shape)
    drop = lambda x: keep(KEY, 0.3, heads, rows, 0, shape[1]) * x
    assert torch.equal(torch.compile(drop, fullgraph=True)(x), drop(x))


@draws
def test_a_key_is_never_used_up_and_others_differ(draw: Any) -> None:
    assert torch.equal(draw(KEY), draw(KEY))
    assert any(not torch.equal(draw(KEY), draw(random.key(seed))) for seed in range(4))


def test_children_are_numbered_and_differ_from_each_other_and_from_draws() -> None:
    children = random.split(KEY, 1000)
    assert torch.equal(children[17], random.fold_in(KEY, 17))
    assert len(torch.unique(children, dim=0)) == 1000
    first = random.randint(KEY, (2,), 0, 2**32)
    assert not torch.equal(children[0], first)


def test_seeds_are_taken_modulo_two_to_the_64() -> None:
    assert torch.equal(random.key(-1), torch.tensor([2**32 - 1, 2**32 - 1]))
    assert torch.equal(random.key(2**64 + 5), random.key(5))
    assert not torch.equal(random.key(5), random.key(2**32 + 5))


def test_a_longer_draw_begins_with_a_shorter_one() -> None:
    assert torch.equal(random.uniform(KEY, 5), random.uniform(KEY, 100)[:5])
    assert torch.equal(random.normal(KEY, (2, 3)).flatten(), random.normal(KEY, 7)[:6])


def test_moments() -> None:
    n = 1 << 16
    u, z = random.uniform(KEY, n, dtype=torch.float64), random.normal(KEY, n, dtype=torch.float64)
    assert 0 <= u.min() < 1e-3 < 1 - 1e-3 < u.max() < 1
    for value, mean, spread in ((u, 0.5, 1 / 12), (z, 0.0, 1.0), (z**3, 0.0, 15.0), (z**4, 3.0, 96.0)):
        assert abs(value.mean().item() - mean) < 5 * (spread / n) ** 0.5
    counts = torch.bincount(random.randint(KEY, (n,), 0, 7))
    assert (counts - n / 7).abs().max() < 5 * (n / 7) ** 0.5
    assert abs(random.bernoulli(KEY, 0.2, n).double().mean().item() - 0.2) < 5 * (0.16 / n) ** 0.5
    assert sorted(random.permutation(KEY, 50).tolist()) == list(range(50))
    halves = random.uniform(KEY, n, dtype=torch.float16)
    assert halves.max() < 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("low", "high"), [(1.0, 2.0), (100.0, 101.0), (-2.0, -1.0), (-1.0, 0.0), (0.0, 3.0)])
def test_uniform_never_reaches_its_end(low: float, high: float, dtype: torch.dtype) -> None:
    drawn = random.uniform(KEY, 200_000, low, high, dtype=dtype)
    assert drawn.dtype == dtype
    assert drawn.min() >= low
    assert drawn.max() < high
    end = torch.tensor(high, dtype=dtype)
    want = torch.nextafter(end, torch.tensor(-torch.inf, dtype=dtype)).item()
    assert high == 0 or random._below(high, dtype) == want


def test_sizes_may_be_symbols() -> None:
    draw = lambda key, q: random.split(key, q.shape[0])
    traced = make_fx(draw, tracing_mode="symbolic")(KEY, torch.zeros(3))
    assert torch.equal(traced(KEY, torch.zeros(5)), random.split(KEY, 5))


# Dropout.

Q, K, V = (random.normal(key, (6, 21, 4, 8), dtype=torch.float64) for key in random.split(random.key(1), 3))


def attend(q: Tensor, k: Tensor, v: Tensor, key: Tensor, backend: str | None = None) -> Tensor:
    return xfn.attention(q, k, v, p=0.4, key=key, backend=backend)


def dropped(key: Tensor, backend: str | None) -> Tensor:
    """Which weights are zero: read off one-hot values and equal logits."""
    n = torch.eye(21, dtype=torch.float64)[:, None, :].expand(6, 21, 4, 21)
    return xfn.attention(Q * 0, K, n, p=0.4, key=key, backend=backend) == 0


def test_every_backend_drops_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    want = dropped(KEY, "reference")
    assert abs(want.double().mean().item() - 0.4) < 0.02
    for elements in (1 << 20, 6 * 4 * 21 * 5, 1):
        monkeypatch.setattr(grid, "ELEMENTS", elements)
        monkeypatch.setattr(grid, "ROWS", 3)
        assert torch.equal(dropped(KEY, "tiled"), want)


def test_batch_loop_and_vmap_drop_the_same() -> None:
    whole = dropped(KEY, None)
    for i in range(6):
        n = torch.eye(21, dtype=torch.float64)[:, None, :].expand(21, 4, 21)
        one = xfn.attention(Q[i] * 0, K[i], n, p=0.4, key=random.fold_in(KEY, i)) == 0
        assert torch.equal(whole[i], one)
    keys = random.split(KEY, 6)
    mapped = func.vmap(attend)(Q, K, V, keys)
    assert torch.equal(mapped, attend(Q, K, V, KEY))
    assert torch.equal(attend(Q, K, V, keys), mapped)


def test_the_mask_follows_its_law() -> None:
    """(m, h, n) is lane n % 8 of Philox-4x32-7 at the counter (n // 8, m, h, 0)."""
    p, kept = 0.4, keep(KEY, 0.4, torch.arange(4), torch.arange(5, 9), 3, 20)
    for h, m, n in ((0, 5, 3), (3, 8, 19), (2, 6, 8), (1, 7, 15)):
        words = philox(KEY, (torch.tensor(n // 8), torch.tensor(m), torch.tensor(h), torch.tensor(0)), 7)
        lane = int(words[n % 8 // 2]) >> 16 * (n % 2) & 0xFFFF
        assert kept[h, m - 5, n - 3].item() == (lane >= round(p * 65536))


def test_dropout_is_unbiased_and_rows_and_heads_differ() -> None:
    q, v = torch.zeros(400, 16, 2, 4), torch.ones(400, 16, 2, 4)
    out = xfn.attention(q, q, v, p=0.25, key=KEY)[..., 0]
    assert abs(out.mean().item() - 1) < 0.01
    assert out.std() > 0.1
    assert threshold(0.25) == 16384
    assert threshold(0.999999999) < 65536


ONES: Any = torch.ones(2, 1, 4)
ALL = Csr.from_mask(torch.ones(2, 2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (
            lambda: xfn.attention(ONES, ONES, ONES, p=0.1, key=7),
            ShapeError,
            "int64 tensor [2], but got 7: write key=random.key(seed)",
        ),
        (
            lambda: xfn.sparse_attention(ALL, ONES, ONES, ONES, p=0.1, key=7),
            ShapeError,
            "but got 7: write key=random.key(seed)",
        ),
        (lambda: xfn.dropout(ONES, 0.1, key=7), ShapeError, "but got 7: write key=random.key(seed)"),
        (lambda: random.key(1.5), TypeError, "a seed is an integer, but got 1.5"),
        (lambda: random.split(KEY, 2.5), TypeError, "a shape is of integers, but got [2.5]"),
        (lambda: random.split(7, 2), ShapeError, "a key is an int64 tensor [2], but got 7"),
        (lambda: random.uniform(torch.zeros(2)), ShapeError, "but got torch.float32 [2]"),
        (lambda: random.normal(random.split(KEY, 3)), ShapeError, "one draw takes one key [2], but got keys [3, 2]"),
        (lambda: random.randint(KEY, (2,), 3, 3), ValueError, "low=3 and high=3 leave nothing to draw"),
        (lambda: random.randint(KEY, 2, 0, 2**63), ValueError, "from 2**40 numbers at most"),
        (lambda: random.randint(KEY, 2, 0, 2.5), TypeError, "between two integers, but got low=0 and high=2.5"),
        (lambda: random.uniform(KEY, 2, 1.0, 1.0), ValueError, "low=1.0 and high=1.0 leave nothing to draw"),
        (lambda: random.uniform(KEY, 2, dtype=torch.int64), TypeError, "dtype is torch.int64, but must be one of"),
        (lambda: random.normal(KEY, 2, dtype=torch.int64), TypeError, "dtype is torch.int64, but must be one of"),
        (lambda: random.fold_in(KEY, 1.7), TypeError, "fold_in takes integers, but got 1.7"),
        (lambda: random.fold_in(KEY, torch.ones(2)), TypeError, "fold_in takes integers, but got torch.float32"),
        (lambda: random.bernoulli(KEY, 2.0), ValueError, "p=2.0 is no probability: it must lie in [0, 1]"),
        (lambda: random.bernoulli(KEY, torch.ones(5, 1), 3), ShapeError, "[5, 1], which does not broadcast to shape"),
        (lambda: random.split(KEY, -1), ValueError, "a shape has no negative sizes, but got [-1]"),
        (lambda: random.permutation(KEY, -1), TypeError, "a number of things or a tensor [n, …], but got -1"),
    ],
)
def test_errors_say_what_to_write(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)):
        call()
