"""Every initialiser: the same key draws the same tree, a map of keys draws what each draws, and nothing is shared."""

import inspect
import re
from typing import Any

import pytest
import torch
from torch import func
from torch.utils import _pytree as tree

import xfn
from xfn import ShapeError, random

INITIALISERS = {title: f for title, f in vars(xfn).items() if title.startswith("init_")}
every_one = pytest.mark.parametrize("title", INITIALISERS)


def drawn(title: str, key: torch.Tensor, dtype: torch.dtype = torch.float64) -> Any:
    """With four for every size that must be given."""
    takes = inspect.signature(INITIALISERS[title]).parameters.values()
    sizes = [4 for p in takes if p.default is p.empty and p.name != "key"]
    return INITIALISERS[title](key, *sizes, dtype=dtype)


@every_one
def test_a_map_of_keys_draws_what_each_draws(title: str) -> None:
    keys = random.split(random.key(1), 3)
    many = func.vmap(lambda key: drawn(title, key))(keys)
    for i in range(3):
        one, again = (drawn(title, keys[i]) for _ in range(2))
        assert tree.tree_structure(one) == tree.tree_structure(many)
        for a, b, c in zip(*map(tree.tree_leaves, (one, again, many)), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c[i])


@every_one
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_parameters_own_their_storage(title: str, dtype: torch.dtype) -> None:
    """An optimiser writes to them in place."""
    keys = random.split(random.key(1), 3)
    for params in (drawn(title, keys[0], dtype), func.vmap(lambda key: drawn(title, key, dtype))(keys)):
        leaves = tree.tree_leaves(params)
        assert leaves
        assert all(leaf.dtype == dtype and leaf.is_contiguous() for leaf in leaves)
        assert len({leaf.untyped_storage().data_ptr() for leaf in leaves}) == len(leaves)


@every_one
def test_a_seed_is_no_key(title: str) -> None:
    with pytest.raises(
        ShapeError, match=re.escape("a key is an int64 tensor [2], but got 7: write key=random.key(seed)")
    ):
        drawn(title, 7)


@every_one
def test_what_is_drawn_is_drawn_once(title: str) -> None:
    """No two tensors of a tree have the same numbers, but for those of one number, and keys draw differently."""
    one, other = (tree.tree_leaves(drawn(title, random.key(seed))) for seed in (0, 1))
    random_ones = [leaf.flatten() for leaf in one if leaf.unique().numel() > 1]
    for i, a in enumerate(random_ones):
        assert not any(torch.equal(a[: len(b)], b[: len(a)]) for b in random_ones[:i])
    for a, b in zip(one, other, strict=True):
        assert a.unique().numel() == 1 or not torch.equal(a, b)
