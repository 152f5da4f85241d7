"""Which kernels a boolean mask takes, by what they cost: 1 is dense tiles, that compute every coefficient.

On a CPU an entry costs what six coefficients of a dense tile cost, for rows of keys are gathered for one query at a
time, where a tile shares them among 64: measured with 64 features, value and gradient together, 3.2 in float32 and 5.3
in bfloat16, whose tiles multiply pairs. Reading the tables off a mask costs a fourth of a coefficient each, once for
all heads and examples that share it. Another way is taken where it is a third faster at least: at best from 12 % down.
"""

from typing import NamedTuple

DENSE, ENTRIES = "dense tiles", "entries"


class Prices(NamedTuple):
    """In coefficients of a dense tile."""

    entry: float
    table: float


PRICES = {"cpu": Prices(entry=6.0, table=0.25)}
"""By device; one that is not named takes dense tiles."""
MARGIN = 1.3
"""How much faster than dense tiles another way must be, by this account."""
LEAST = 1 << 16
"""Coefficients of the smallest mask that is looked at."""


def costs(device: str, density: float, shared: int) -> dict[str, float]:
    """What each way costs, for a mask that so many heads and examples share."""
    found = {DENSE: 1.0}
    if device in PRICES:
        entry, table = PRICES[device]
        found[ENTRIES] = entry * density + table / max(shared, 1)
    return found


def choose(device: str, M: int, N: int, density: float, shared: int) -> str:
    """The way that is taken."""
    found = costs(device, density, shared)
    best = min(found, key=lambda way: found[way])
    return best if M * N >= LEAST and found[best] * MARGIN <= found[DENSE] else DENSE
