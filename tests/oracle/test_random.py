"""Keys and bits against Philox in numpy, and against the answers that its authors publish."""

import numpy as np
import pytest
import torch

from xfn import random
from xfn._core.philox import philox

from . import philox as oracle

# Random123, tests/kat_vectors: rounds, counter and key, words.
KNOWN = """
7  00000000 00000000 00000000 00000000 00000000 00000000  5f6fb709 0d893f64 4f121f81 4f730a48
7  ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff  5207ddc2 45165e59 4d8ee751 8c52f662
7  243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0  4dfccaba 190a87f0 c47362ba b6b5242a
10 00000000 00000000 00000000 00000000 00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8
10 ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd
10 243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1
"""


@pytest.mark.parametrize("line", KNOWN.strip().splitlines())
def test_known_answers(line: str) -> None:
    rounds, *rest = line.split()
    words = [int(word, 16) for word in rest]
    counter, key, want = words[:4], words[4:6], words[6:]
    c0, c1, c2, c3 = torch.tensor(counter)
    assert torch.stack(philox(torch.tensor(key), (c0, c1, c2, c3), int(rounds))).tolist() == want
    assert oracle.philox(counter, key, int(rounds)).tolist() == want


@pytest.mark.parametrize("rounds", [7, 10])
def test_random_counters(rounds: int) -> None:
    draw = np.random.default_rng(0).integers(0, 2**32, (20_000, 6), dtype=np.uint64)
    counter, key = draw[:, :4], draw[:, 4:]
    c0, c1, c2, c3 = torch.from_numpy(counter.astype(np.int64)).unbind(-1)
    got = torch.stack(philox(torch.from_numpy(key.astype(np.int64)), (c0, c1, c2, c3), rounds), -1)
    np.testing.assert_array_equal(got.numpy(), oracle.philox(counter, key, rounds))


def test_keys_and_children() -> None:
    seeds = (0, 7, -1, 2**63 + 5)
    assert [random.key(seed).tolist() for seed in seeds] == [[s % 2**32, (s >> 32) % 2**32] for s in seeds]
    for number in (0, 3, 2**32, 2**62 + 1):
        assert random.fold_in(random.key(11), number).tolist() == list(oracle.child((11, 0), number))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_uniform(dtype: torch.dtype) -> None:
    """Number i is word i % 4 of block i // 4; float64 takes two words, the first of them high."""
    bits = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}[dtype]
    counter = np.zeros((6, 4), np.uint64)
    counter[:, 0] = np.arange(6)
    words = oracle.philox(counter, (9, 0), 10).flatten()
    if dtype == torch.float64:
        words = words[::2] << np.uint64(32) | words[1::2]
    top = words >> np.uint64((64 if dtype == torch.float64 else 32) - bits)
    got = random.uniform(random.key(9), (len(top),), dtype=dtype)
    np.testing.assert_array_equal(got.double().numpy(), top.astype(np.float64) / 2.0**bits)
