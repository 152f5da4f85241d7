"""How large the tiles of a kernel are, and how many warps and stages they take."""

import torch
from triton import knobs

INTERPRETED = bool(knobs.runtime.interpret)
"""Whether Triton interprets its kernels on the CPU, as it was told before it was imported."""

# The widest of K and V, padded -> BM, BN, warps, stages; of a tile of half types.
HALF = {
    "forward": {64: (128, 64, 4, 3), 128: (128, 64, 8, 3), 256: (64, 32, 4, 2)},
    "by_queries": {64: (64, 64, 4, 3), 128: (64, 64, 8, 2), 256: (32, 32, 4, 2)},
    "by_keys": {64: (64, 64, 4, 2), 128: (32, 64, 4, 2), 256: (32, 32, 4, 1)},
    "tangent": {64: (64, 64, 8, 2), 128: (64, 32, 8, 2), 256: (32, 32, 8, 1)},
    "by_bias": {64: (64, 64, 4, 2), 128: (64, 64, 4, 1), 256: (32, 32, 4, 1)},
}
WIDE = {
    "forward": {64: (32, 32, 8, 2), 128: (32, 32, 8, 1), 256: (16, 32, 8, 1)},
    "by_queries": {64: (32, 32, 8, 2), 128: (32, 32, 8, 1), 256: (16, 16, 8, 1)},
    "by_keys": {64: (32, 32, 8, 2), 128: (32, 32, 8, 1), 256: (16, 16, 8, 1)},
    "tangent": {64: (32, 32, 8, 1), 128: (16, 16, 8, 1), 256: (16, 16, 8, 1)},
    "by_bias": {64: (32, 32, 8, 1), 128: (32, 32, 8, 1), 256: (16, 16, 8, 1)},
}


def tiles(kernel: str, widest: int, dtype: torch.dtype, rich: bool) -> dict[str, int]:
    """The constants of a launch; a call that adds or drops takes the tiles of heads twice as wide. Interpreted, all
    tiles are small, so that small calls have many."""
    table = WIDE if dtype == torch.float32 else HALF
    BM, BN, warps, stages = table[kernel][min(max(widest << rich, 64), 256)]
    if INTERPRETED:
        BM, BN = 16, 16
    return {"BM": BM, "BN": BN, "num_warps": warps, "num_stages": stages}
