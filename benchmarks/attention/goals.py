"""The goals of design/cpu.md §5 for the grid: our gain over the best peer, on one thread, by CPU time."""

from collections.abc import Iterator
from itertools import product

from benchmarks.contest import Goal, faster, share

FLOOR = faster(1.0)

# Sizes: small is S ≤ 128 with 32 features, middle is S = 512, long is S ≥ 1024, wide is long with 128 features.
LONG = "long wide"
F32, BF16, F16 = "float32", "bfloat16", "float16"

TABLE = (
    ("forward", F32, "dense", "middle long", (faster(1.22, 1.30), share(0.87))),
    ("forward", F32, "dense", "wide", (faster(1.15, 1.25), share(0.87))),
    ("forward", F32, "dense", "small", (faster(1.55, 2.0),)),
    ("forward", F32, "causal", "middle", (faster(2.1, 2.6),)),
    ("forward", F32, "causal", LONG, (faster(1.4, 1.75),)),
    ("forward", F32, "causal", "small", (faster(2.1, 3.0),)),
    ("forward", BF16, "dense", LONG, (faster(2.2, 2.6), share(0.82))),
    ("forward", BF16, "dense", "middle", (faster(1.5, 1.8), faster(2.4, of="sdpa"))),
    ("forward", BF16, "dense", "small", (faster(1.9, 2.5), faster(3.0, of="sdpa"))),
    ("forward", BF16, "causal", "middle", (faster(3.5, 4.5),)),
    ("forward", BF16, "causal", LONG, (faster(2.7, 3.3),)),
    ("forward", BF16, "causal", "small", (faster(3.5, 5.0), faster(4.5, of="sdpa"))),
    ("forward", F16, "dense causal", "small middle", (faster(2.2, 3.0),)),
    ("forward", F16, "dense causal", LONG, (faster(1.5, 1.8),)),
    ("forward+backward", F32, "dense", "middle long", (faster(1.3, 1.4),)),
    ("forward+backward", F32, "dense", "wide", (faster(1.17, 1.25),)),
    ("forward+backward", F32, "dense", "small", (faster(1.45, 1.8),)),
    ("forward+backward", F32, "causal", "middle", (faster(2.2),)),
    ("forward+backward", F32, "causal", LONG, (faster(1.5, 1.75),)),
    ("forward+backward", F32, "causal", "small", (faster(1.9, 2.6),)),
    ("forward+backward", BF16, "dense", LONG, (faster(1.7, 2.2),)),
    ("forward+backward", BF16, "dense", "middle", (faster(1.12, 1.25), faster(2.2, of="sdpa"))),
    ("forward+backward", BF16, "dense", "small", (faster(1.3, 1.7), faster(6.0, of="sdpa"))),
    ("forward+backward", BF16, "causal", LONG, (faster(2.2, 2.7),)),
    ("forward+backward", BF16, "causal", "middle", (faster(2.5, 3.2), faster(4.0, of="sdpa"))),
    ("forward+backward", BF16, "causal", "small", (faster(2.2, 3.5), faster(6.0, of="sdpa"))),
    ("forward+backward", F16, "dense causal", "small middle long wide", (faster(6.0, 9.0),)),
)


def spread() -> Iterator[tuple[tuple[str, str, str, str], tuple[Goal, ...]]]:
    for what, dtype, masks, sizes, goals in TABLE:
        for mask, size in product(masks.split(), sizes.split()):
            yield (what, dtype, mask, size), goals


GOALS = dict(spread())


def size(S: int, D: int) -> str:
    if S <= 128:
        return "small"
    if S < 1024:
        return "middle"
    return "wide" if D >= 128 else "long"


def goals(what: str, dtype: str, mask: str, S: int, D: int) -> tuple[Goal, ...]:
    """The goals of one row of the grid."""
    return GOALS[what, dtype, mask, size(S, D)]
