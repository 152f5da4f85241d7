"""Philox-4x32 in plain torch: counters and a key in, four 32-bit words out.

One round multiplies words 0 and 2 by the constants M, crosses high and low halves over, and adds the round's
key; the key moves by the Weyl constants W. Words are kept in int64. There c M may overflow, which is undefined in the
C++ that a compiler makes of this; (c − 2³¹) M + 2³¹ cannot, and lacks 2³² ⌊M / 2⌋ of it, for M is odd.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

import torch
from torch import Tensor

from .errors import ShapeError

M = (0xD2511F53, 0xCD9E8D57)
W = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF
HALF = 2**31
LANES = 8
"""Dropout decisions that one call of Philox makes: its four words, cut into 16-bit lanes."""

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def check_key(key: Tensor, single: bool = False) -> None:
    """Raise where it is no key, or, if a single one is wanted, several."""
    if not isinstance(key, Tensor) or key.dtype != torch.int64 or key.dim() == 0 or key.shape[-1] != 2:
        got = f"{key.dtype} {list(key.shape)}" if isinstance(key, Tensor) else repr(key)
        raise ShapeError(f"a key is an int64 tensor [2], but got {got}: write key=random.key(seed)")
    if single and key.dim() != 1:
        raise ShapeError(f"one draw takes one key [2], but got keys {list(key.shape)}: map over them with vmap")


def philox(key: Tensor, counter: Words, rounds: int = 10) -> Words:
    """Four words of bits, each in ``[0, 2**32)``, for every counter.

    ``key [..., 2]`` holds two words; ``...`` and the four words of ``counter`` broadcast.
    """
    k0, k1 = key.select(-1, 0), key.select(-1, 1)
    if key.is_meta:  # there are shapes alone
        return (torch.broadcast_tensors(k0, *counter)[0],) * 4
    c0, c1, c2, c3 = counter
    turns = torch.arange(rounds, device=key.device)
    keys = [((k.unsqueeze(-1) + turns * w) & MASK).unbind(-1) for k, w in zip((k0, k1), W, strict=True)]
    for k0, k1 in zip(*keys, strict=True):
        a, b = (c0 - HALF) * M[0] + HALF, (c2 - HALF) * M[1] + HALF
        c0, c1, c2, c3 = (b >> 32) + M[1] // 2 ^ c1 ^ k0, b & MASK, (a >> 32) + M[0] // 2 ^ c3 ^ k1, a & MASK
    return c0, c1, c2, c3


def threshold(p: float) -> int:
    """A lane below this many 65536ths is dropped."""
    return min(round(p * 65536), 65535)


def keep(key: Tensor, p: float, heads: Tensor, rows: Tensor, start: int, stop: int) -> Tensor:
    """Which softmax weights survive dropout: ``[..., H, M, stop - start]`` booleans.

    The decision for (m, h, n) is a function of the key and of these three alone: lane n % 8 of Philox-4x32-7 at
    the counter (n // 8, m, h, 0), kept when it is at least ``threshold(p)``. Seven rounds are the least that pass
    the authors' tests; they halve the cost, and every backend draws the same bits.
    """
    first, last = start // LANES, -(-stop // LANES)
    kept = keep_groups(key, p, heads, rows, torch.arange(first, last, device=key.device))
    return kept[..., start - first * LANES : stop - first * LANES]


def grown(p: float) -> float:
    """By how much what dropout leaves grows."""
    return 65536 / (65536 - threshold(p))


def dropped(t: Tensor, key: Tensor | None, p: float) -> Tensor:
    """``t [..., M, E]`` after dropout with a key per example, as the weights of one head; without a key, t."""
    if key is None:
        return t
    head, rows = (torch.arange(n, device=key.device) for n in (1, t.shape[-2]))
    return torch.where(keep(key, p, head, rows, 0, t.shape[-1]).squeeze(-3), t * grown(p), 0)


def keep_groups(key: Tensor, p: float, heads: Tensor, rows: Tensor, groups: Tensor) -> Tensor:
    """As :func:`keep`, for the keys of any ``groups`` of eight, n // 8."""
    zero = torch.zeros((), dtype=torch.int64, device=key.device)
    words = philox(key[..., None, None, None, :], (groups, rows[:, None], heads[:, None, None], zero), rounds=7)
    lanes = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], -1)
    return (lanes >= threshold(p)).flatten(-2)


def keep_at(key: Tensor, p: float, heads: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """As :func:`keep`, of single weights: ``[..., H, Z]`` for ``rows`` and ``columns`` ``[..., H|1, Z]``."""
    zero = torch.zeros((), dtype=torch.int64, device=key.device)
    words = philox(key[..., None, None, :], (columns // LANES, rows, heads[:, None], zero), rounds=7)
    lane = columns % LANES
    word = sum(torch.where(lane // 2 == i, w, 0) for i, w in enumerate(words))
    return (word >> 16 * (lane % 2) & 0xFFFF) >= threshold(p)


def drawn(device: torch.device | None = None) -> Tensor:
    """A key from torch's generator, which ``torch.manual_seed`` seeds."""
    return torch.randint(2**32, (2,)).to(device)
