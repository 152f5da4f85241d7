"""Which entries of a matrix 2:4 sparsity keeps, tile by tile of 4 × 4, and those entries packed.

An algorithm goes through the 16 entries of a tile, largest first, and keeps one while its row and its column have
places left. ``causal1122`` goes through the rows one after the other, so that a row hangs on those above it alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Algorithm(NamedTuple):
    """The order of the entries, and the places that a tile has."""

    absolute: bool = False
    by_row: bool = False
    rows: tuple[int, ...] = (2, 2, 2, 2)
    columns: tuple[int, ...] = (2, 2, 2, 2)


ALGORITHMS = {
    "": Algorithm(),
    "largest_values_greedy": Algorithm(),
    "largest_abs_values_greedy": Algorithm(absolute=True),
    "causal1122": Algorithm(by_row=True, rows=(1, 1, 2, 2)),
    "largest_notranspose": Algorithm(columns=(4, 4, 4, 4)),
    "largest_abs_notranspose": Algorithm(absolute=True, columns=(4, 4, 4, 4)),
}


def kept(x: Tensor, name: str) -> Tensor:
    """Booleans ``[M, N]``. A tile at an edge holds what there is of it."""
    if name not in ALGORITHMS:
        raise RuntimeError(f"no algorithm is called {name!r}; there are {list(ALGORITHMS)}")
    if x.dim() != 2:
        raise NotImplementedError(f"matrices alone are pruned, but x has shape {list(x.shape)}")
    algorithm, (M, N) = ALGORITHMS[name], x.shape
    scores = x.detach().abs() if algorithm.absolute else x.detach()
    scores = torch.nn.functional.pad(scores, (0, -N % 4, 0, -M % 4), value=-torch.inf)
    tiles = scores.unflatten(0, (-1, 4)).unflatten(-1, (-1, 4)).transpose(1, 2)  # [M / 4, N / 4, 4, 4]
    if algorithm.by_row:
        first = torch.arange(0, 16, 4, device=x.device)[:, None]
        order = (tiles.argsort(dim=-1, descending=True, stable=True) + first).flatten(-2)
    else:
        order = tiles.flatten(-2).argsort(dim=-1, descending=True, stable=True)
    found = _greedy(order, algorithm).reshape(*tiles.shape).transpose(1, 2)
    return found.flatten(2).flatten(0, 1)[:M, :N].contiguous()


def _greedy(order: Tensor, algorithm: Algorithm) -> Tensor:
    """Which of the entries ``[..., 16]`` are kept, when they are asked in an order."""
    places = (algorithm.rows, algorithm.columns)
    rows, columns = (torch.tensor(p, device=order.device).expand(*order.shape[:-1], 4) for p in places)
    answers = []
    for place in order.split(1, -1):
        row, column = place // 4, place % 4
        free = (rows.gather(-1, row) > 0) & (columns.gather(-1, column) > 0)
        rows = rows.scatter_add(-1, row, -free.long())
        columns = columns.scatter_add(-1, column, -free.long())
        answers.append(free)
    asked = torch.cat(answers, -1)
    return torch.zeros_like(asked).scatter(-1, order, asked)


def packed(x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Two of each four entries of a row, the kept ones first and 0 for what is missing, and where they were."""
    edge = (0, -x.shape[1] % 4)
    fours, there = (torch.nn.functional.pad(t, edge).unflatten(-1, (-1, 4)) for t in (x, keep))
    where = there.byte().argsort(dim=-1, descending=True, stable=True)[..., :2]
    values = torch.where(there.gather(-1, where), fours.gather(-1, where), 0)
    return values.flatten(-2), where.to(torch.int8).flatten(-2)
