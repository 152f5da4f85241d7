"""Dropout draws from its key alone, fairly, and says what it lacks."""

import pytest
import torch
from torch import func

import xfn
from xfn import activations, random
from xfn._core.activations import ACTIVATIONS
from xfn._core.errors import KeyRequired, ShapeError

from ..cases import agree

KEY = random.key(11)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_each_number_survives_as_often_as_it_should(p: float) -> None:
    """Over rows, columns and both: within five standard deviations."""
    kept = xfn.dropout(torch.ones(512, 512), p, key=KEY) != 0
    spread = (p * (1 - p)) ** 0.5
    for dim, count in (((0, 1), 512 * 512), (0, 512), (1, 512)):
        mean = kept.double().mean(dim)
        assert ((mean - (1 - p)).abs() < 5 * spread / count**0.5).all()
    same = (kept[1:] == kept[:-1]).double().mean()
    assert abs(same - (p**2 + (1 - p) ** 2)) < 5 * 0.5 / 511, "rows are drawn apart"


def test_the_mean_stays() -> None:
    x = torch.ones(512, 512)
    assert abs(xfn.dropout(x, 0.3, key=KEY).mean() - 1) < 0.01


def test_a_batch_draws_what_its_examples_draw() -> None:
    x = torch.randn(4, 3, 9, dtype=torch.float64)
    keys = random.split(KEY, 4)
    loop = torch.stack([xfn.dropout(v, 0.5, key=key) for v, key in zip(x, keys, strict=True)])
    assert torch.equal(xfn.dropout(x, 0.5, key=KEY), loop)
    assert torch.equal(func.vmap(lambda v, key: xfn.dropout(v, 0.5, key=key))(x, keys), loop)


def test_what_is_dropped_is_dropped_from_the_gradient() -> None:
    x = torch.randn(3, 9, dtype=torch.float64)
    y = xfn.dropout(x, 0.5, key=KEY)
    slope = func.grad(lambda x: xfn.dropout(x, 0.5, key=KEY).sum())(x)
    agree(slope, torch.where(y == 0, 0, 2.0).double())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_by_name_is_the_function(name: str) -> None:
    x, b = torch.randn(3, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    agree(xfn.dropout(x, 0.0, b, name), getattr(activations, name)(x + b))
    agree(xfn.dropout(x, 0.0, b, getattr(activations, name)), getattr(activations, name)(x + b))


def test_star_relu_keeps_a_normal_number_normal() -> None:
    y = activations.star_relu(random.normal(KEY, 100_000, dtype=torch.float64))
    assert abs(y.mean()) < 0.01
    assert abs(y.var() - 1) < 0.05


def test_what_is_wrong_is_said() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(KeyRequired, match=r"p=0.5 drops numbers, which needs a key: pass key=random.key\(seed\)"):
        xfn.dropout(x, 0.5)
    with pytest.raises(ValueError, match="no activation is called 'swish'; there are identity, relu"):
        xfn.dropout(x, 0.0, activation="swish")
    with pytest.raises(ShapeError, match=r"bias \[\.\.\., E\] has E=4, but x has E=3"):
        xfn.dropout(x, 0.0, torch.ones(4))
    with pytest.raises(ValueError, match="it must lie in"):
        xfn.dropout(x, 1.0, key=KEY)


@pytest.mark.parametrize("activation", ["identity", "gelu"])
def test_what_is_dropped_is_kept_only_for_the_slope_of_an_activation(activation: str) -> None:
    x, residual = (torch.randn(5, 8, requires_grad=True) for _ in range(2))
    saved: list[int] = []
    keep = lambda t: saved.append(t.untyped_storage().data_ptr()) or t  # type: ignore[func-returns-value]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        xfn.dropout(x, 0.5, None, activation, residual, key=random.key(0))
    assert [t.untyped_storage().data_ptr() in saved for t in (x, residual)] == [activation != "identity", False]
