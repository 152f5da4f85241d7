"""How large the tiles of a kernel are, and how many warps and stages they take."""

import torch
import triton
from triton.runtime import driver

from .._target import INTERPRETED, in_groups

SMALL = 16
"""The least side of a tile, and both of one that is interpreted."""

SPLIT = 1024
"""The width from which on rows come in chunks, in the tables: those which no other entry takes."""

# The widest of K and V, padded -> BM, BN, warps, stages; of a tile of half types. What GROUPS lacks is as in HALF.
HALF = {
    "forward": {64: (128, 64, 4, 3), 128: (128, 64, 8, 2), 256: (64, 32, 4, 2), SPLIT: (64, 32, 4, 2)},
    "deltas": {64: (64, 16, 4, 1), 128: (32, 16, 4, 1), 256: (16, 16, 4, 1), SPLIT: (16, 16, 4, 1)},
    "by_queries": {64: (64, 64, 4, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 2), SPLIT: (32, 32, 8, 2)},
    "by_keys": {64: (64, 64, 4, 2), 128: (32, 64, 8, 2), 256: (32, 32, 8, 2), SPLIT: (32, 32, 8, 2)},
    "by_bias": {64: (64, 64, 4, 2), 128: (64, 64, 4, 1), 256: (32, 32, 4, 1), SPLIT: (64, 64, 4, 2)},
    "tangent": {64: (64, 64, 8, 2), 128: (64, 32, 8, 1), 256: (32, 32, 8, 1), SPLIT: (32, 32, 8, 2)},
    "dual": {64: (64, 64, 8, 2), 128: (32, 32, 8, 2), SPLIT: (32, 32, 8, 2)},
    "turn_queries": {64: (64, 32, 8, 2), 128: (32, 32, 8, 1), SPLIT: (32, 32, 8, 2)},
    "turn_keys": {64: (64, 32, 8, 2), 128: (32, 32, 8, 1), SPLIT: (32, 32, 8, 2)},
    "turn_bias": {64: (32, 32, 8, 2), 128: (32, 32, 8, 1), SPLIT: (32, 32, 8, 2)},
    "bend": {64: (64, 32, 8, 2), 128: (32, 32, 8, 1), SPLIT: (32, 32, 8, 2)},
}
GROUPS = {
    "forward": {128: (128, 64, 8, 3), 256: (128, 64, 8, 2), SPLIT: (128, 64, 8, 2)},
    "by_queries": {128: (128, 64, 8, 2), 256: (64, 64, 8, 2), SPLIT: (64, 64, 8, 2)},
    "by_keys": {128: (64, 64, 8, 2), 256: (32, 64, 8, 2), SPLIT: (64, 64, 8, 2)},
    "tangent": {64: (128, 64, 8, 2), 128: (64, 32, 4, 2), SPLIT: (64, 64, 8, 2)},
    "dual": {64: (128, 64, 8, 2), 128: (64, 32, 8, 2), SPLIT: (64, 32, 8, 2)},
    "turn_queries": {64: (64, 32, 4, 2), 128: (64, 32, 8, 2), SPLIT: (64, 64, 8, 2)},
    "turn_keys": {64: (64, 32, 4, 2), 128: (32, 32, 8, 2), SPLIT: (64, 64, 8, 2)},
    "turn_bias": {SPLIT: (64, 64, 8, 2)},
    "bend": {128: (64, 32, 8, 2), SPLIT: (64, 64, 8, 2)},
}
WIDE = {
    "forward": {64: (32, 32, 8, 2), 128: (32, 32, 8, 1), 256: (16, 32, 8, 1), SPLIT: (16, 32, 8, 1)},
    "deltas": {64: (64, 16, 4, 1), 128: (32, 16, 4, 1), 256: (16, 16, 4, 1), SPLIT: (16, 16, 4, 1)},
    "by_queries": {64: (32, 32, 8, 2), 128: (32, 32, 8, 1), 256: (16, 16, 8, 1), SPLIT: (16, 16, 8, 1)},
    "by_keys": {64: (32, 32, 8, 2), 128: (32, 32, 8, 1), 256: (16, 16, 8, 1), SPLIT: (16, 16, 8, 1)},
    "by_bias": {64: (32, 32, 8, 1), 128: (32, 32, 8, 1), 256: (16, 16, 8, 1), SPLIT: (32, 32, 8, 1)},
    "tangent": {64: (32, 32, 8, 1), 128: (16, 16, 8, 1), SPLIT: (16, 16, 8, 1)},
    "dual": {64: (16, 16, 8, 1), SPLIT: (16, 16, 8, 1)},
    "turn_queries": {64: (16, 16, 8, 1), SPLIT: (16, 16, 8, 1)},
    "turn_keys": {64: (16, 16, 8, 1), SPLIT: (16, 16, 8, 1)},
    "turn_bias": {64: (16, 16, 8, 1), SPLIT: (16, 16, 8, 1)},
    "bend": {64: (16, 16, 8, 1), SPLIT: (16, 16, 8, 1)},
}
COLUMNS = ("by_keys", "turn_keys")
"""What makes keys, and walks over queries; it shares a launch, its warps and its stages with what makes queries."""
CHUNKS = {
    "forward": (64, 256),
    "deltas": (256, 256),
    "by_queries": (128, 64),
    "by_keys": (128, 128),
    "by_bias": (64, 64),
    "tangent": (64, 128),
    "dual": (64, 128),
    "turn_queries": (64, 64),
    "turn_keys": (64, 64),
    "turn_bias": (64, 64),
    "bend": (64, 64),
}
"""How many features of q and k, and of v, are in a chunk."""

HOPPER = triton.__version__.startswith("3.6.")
"""Whether calls that fit take the kernel of ``hopper.py`` on devices of compute capability 9.0; where False, they take
the one of all devices. It is in Gluon, which is experimental, and has been compiled by this release alone."""
RINGS = {64: (128, 4), 128: (128, 2)}
"""There, by features, padded: how many keys a tile has, and how many tiles of them a ring."""


def on_hopper() -> bool:
    """Whether that kernel is there for the device of this call."""
    return HOPPER and not INTERPRETED and driver.active.get_current_target().arch == 90


def tiles(kernel: str, K: int, V: int, dtype: torch.dtype, rich: bool, block: int) -> dict[str, int]:
    """The constants of a launch of K and V features, padded; a call that adds or drops takes the tiles of heads twice
    as wide. Interpreted, all tiles are small, so that small calls have many. What a program makes is within one
    tile of a layout; what it walks over is gathered, however small the tiles."""
    table, widest = (WIDE if dtype == torch.float32 else HALF)[kernel], max(K, V, 64)
    if dtype != torch.float32 and in_groups():
        table = table | GROUPS.get(kernel, {})
    whole = [width for width in table if width != SPLIT]
    fits = widest <= max(whole)
    BM, BN, warps, stages = table[min(widest << rich, max(whole)) if fits else SPLIT]
    most = (K, V) if fits else CHUNKS[kernel]
    if INTERPRETED:
        BM, BN, most = SMALL, SMALL, (max(SMALL, K // 4), max(SMALL, V // 4))
    if block:
        line, area = max(SMALL, block), BM * BN
        BM = BM if kernel in COLUMNS else min(BM, line)
        BN = min(BN, line) if kernel in COLUMNS or kernel.endswith("bias") else BN
        warps = max(4, warps * BM * BN // area)
    BK, BV = min(K, most[0]), min(V, most[1])
    return {"BM": BM, "BN": BN, "BK": BK, "BV": BV, "num_warps": warps, "num_stages": stages}
