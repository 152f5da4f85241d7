"""Orthoformer: two softmaxes through landmarks, which are chosen as their names say, by key and without gradient."""

import pytest
import torch
from torch import Tensor, func

import xfn
from xfn import random
from xfn.parts.attention.ortho import SELECTIONS, Ortho, clustered, spread

from ..cases import agree

Q, K, V = random.normal(random.key(0), (3, 3, 12, 2, 4), dtype=torch.float64)
every_selection = pytest.mark.parametrize("selection", SELECTIONS)


def through(q: Tensor, marks: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = lambda a, b: (torch.einsum("...mhk,...nhk->...hmn", a, b) / 2).softmax(-1)
    return torch.einsum("...hml,...hln,...nhv->...mhv", weights(q, marks), weights(marks, k), v)


def chosen(part: Ortho, key: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Landmarks of every head of one example."""
    each = [part.choose(random.fold_in(key, h), q[:, h], k[:, h]) for h in range(q.shape[1])]
    return torch.stack(each, 1)


@every_selection
@pytest.mark.parametrize("subsample", [1.0, 0.5])
def test_is_the_formula_and_landmarks_have_no_gradient(selection: str, subsample: float) -> None:
    part = Ortho(5, selection, subsample)
    marks = torch.stack([chosen(part, random.key(0), q, k) for q, k in zip(Q, K, strict=True)])
    agree(part.apply({}, Q, K, V), through(Q, marks, K, V))
    slopes = [func.grad(lambda *x: f(*x).sin().sum(), (0, 1, 2))(Q, K, V) for f in (
        lambda q, k, v: part.apply({}, q, k, v), lambda q, k, v: through(q, marks, k, v)
    )]  # fmt: skip
    agree(*slopes)


@every_selection
def test_as_many_landmarks_as_tokens_are_attention(selection: str) -> None:
    part = Ortho(12, selection)
    agree(part.apply({}, Q, K, V), xfn.attention(Q, K, V))


@every_selection
def test_draws_are_the_keys(selection: str) -> None:
    """Every example has its own key's; in evaluation all have that of the seed."""
    part, key = Ortho(4, selection), random.key(5)
    keys = random.split(key, 3)
    loop = torch.stack([part.apply({}, Q[i], K[i], V[i], key=keys[i]) for i in range(3)])
    agree(part.apply({}, Q, K, V, key=key), loop, 1e-13)
    agree(func.vmap(lambda q, k, v, key: part.apply({}, q, k, v, key=key))(Q, K, V, keys), loop, 1e-13)
    assert not torch.equal(loop, part.apply({}, Q, K, V, key=random.key(6)))
    still = torch.stack([part.apply({}, Q[i], K[i], V[i]) for i in range(3)])
    agree(part.apply({}, Q, K, V), still, 1e-13)
    other = Ortho(4, selection, seed=1).apply({}, Q, K, V)
    assert not torch.equal(other, part.apply({}, Q, K, V))


def test_orthogonal_landmarks_take_every_direction_once() -> None:
    axes = torch.eye(4).repeat(3, 1)[random.permutation(random.key(0), 12)] * torch.arange(1, 13)[:, None]
    for seed in range(5):
        marks = spread(random.key(seed), axes, 4)
        assert sorted(marks.argmax(-1).tolist()) == [0, 1, 2, 3]
        assert marks.sum(-1).tolist() == sorted(marks.sum(-1).tolist())  # in the order of the sequence


def test_orthogonal_landmarks_are_distinct_rows_even_of_equal_ones() -> None:
    rows = torch.ones(6, 3) * torch.arange(1.0, 7)[:, None]
    assert len(spread(random.key(0), rows, 4).unique(dim=0)) == 4
    assert spread(random.key(0), torch.zeros(6, 3), 4).isfinite().all()


def test_clusters_are_found() -> None:
    centres = 10 * torch.eye(3)
    rows = (centres[:, None] + torch.randn(3, 8, 3) / 100).flatten(0, 1)
    means = rows.unflatten(0, (3, 8)).mean(1)
    found = [clustered(random.key(seed), rows, 3, False) for seed in range(20)]
    assert sum(torch.allclose(f.sort(0).values, means.sort(0).values, atol=1e-5) for f in found) >= 3
    turned = clustered(random.key(0), rows, 5, True)
    agree(turned.norm(dim=-1), torch.ones(5), 1e-6)
    assert clustered(random.key(0), torch.ones(6, 2), 4, False).eq(1).all()  # nothing is nearest to three of them


def test_random_landmarks_are_queries_and_keys() -> None:
    q, k = torch.arange(12.0)[:, None], torch.arange(20.0, 32)[:, None]
    marks = Ortho(7, "random").choose(random.key(0), q, k).flatten()
    assert (marks < 12).sum() == 4
    assert len(marks.unique()) == 7


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match="selection='best' is none of 'orthogonal', 'kmeans'"):
        Ortho(selection="best")
    with pytest.raises(ValueError, match=r"subsample=0.0 in \(0, 1\]"):
        Ortho(subsample=0.0)
