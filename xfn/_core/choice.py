"""Which kernels a boolean mask takes, by what they cost: 1 is dense tiles, that compute every coefficient.

    dense tiles   1
    block tiles   (tile + table / shared) · the part of the tiles that are live, of the size that is cheapest
    entries       entry · density + table / shared: rows of keys are gathered for one query at a time

``shared`` heads and examples have one mask, whose tables are read off once. All prices are in coefficients of a dense
tile under a mask. Another way is taken where it is ``margin`` times cheaper: that is the one threshold of a class of
devices. Masks are not counted on a device that has no prices.

The prices of the CPU were measured with 64 features on AVX-512, value and gradient: a coefficient of a live tile of 64
costs what a dense one costs, and a tenth is lost between tiles; tiles of 16 and 8 fill fewer lanes and steps. An entry
costs 3.2 in float32, and 5.3 in bfloat16, whose tiles multiply pairs.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

DENSE, TILES, ENTRIES = "dense tiles", "block tiles", "entries"
SIZES = (8, 16, 32, 64)
"""Of the tiles that are counted."""
LEAST = 1 << 16
"""Coefficients of the smallest mask that is looked at."""


class Prices(NamedTuple):
    """In coefficients of a dense tile; ``tile`` by size; ``table``: reading a coefficient of the mask."""

    tile: Mapping[int, float]
    entry: float
    table: float
    margin: float


PRICES = {"cpu": Prices(tile={8: 3.2, 16: 1.6, 32: 1.2, 64: 1.1}, entry=6.0, table=0.25, margin=1.3)}


class Census(NamedTuple):
    """Of P masks of M by N: how many coefficients are True in all, and how many tiles of each size hold one."""

    P: int
    M: int
    N: int
    entries: int
    live: tuple[int, ...]

    @staticmethod
    def of(mask: Tensor) -> "Census":
        """Of masks ``[P, M, N]`` on any device, which it waits for."""
        tiles = mask
        live: list[int] = []
        for size in SIZES:
            by = 2 if live else size
            tiles = F.pad(tiles, (0, -tiles.shape[-1] % by, 0, -tiles.shape[-2] % by))
            rows, columns = (length // by for length in tiles.shape[-2:])
            tiles = tiles.reshape(len(mask), rows, by, columns, by).any(-1).any(-2)
            live.append(int(tiles.sum()))
        P, M, N = mask.shape
        return Census(P, M, N, int(mask.sum()), tuple(live))

    @property
    def density(self) -> float:
        return self.entries / max(1, self.P * self.M * self.N)

    def tiles(self, size: int) -> float:
        """The part of the tiles of this size that are live."""
        return self.live[SIZES.index(size)] / max(1, self.P * -(-self.M // size) * -(-self.N // size))


class Choice(NamedTuple):
    """``block``: the size of tiles that is cheapest, whichever way is taken."""

    way: str
    block: int
    costs: Mapping[str, float]


def choose(device: str, found: Census, shared: int, ways: Sequence[str] = (TILES, ENTRIES)) -> Choice:
    """The way that is taken by masks that so many heads and examples share, each; dense tiles are always one."""
    if device not in PRICES:
        return Choice(DENSE, SIZES[-1], {DENSE: 1.0})
    price = PRICES[device]
    table = price.table / max(1, shared)
    tiles = {size: (price.tile[size] + table) * found.tiles(size) for size in SIZES}
    block = min(SIZES, key=lambda size: (tiles[size], -size))
    every = {DENSE: 1.0, TILES: tiles[block], ENTRIES: price.entry * found.density + price.table / max(1, shared)}
    costs = {way: cost for way, cost in every.items() if way == DENSE or way in ways}
    best = min(costs, key=lambda way: costs[way])
    large = found.M * found.N >= LEAST
    return Choice(best if large and costs[best] * price.margin <= 1 else DENSE, block, costs)
