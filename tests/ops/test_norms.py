"""Normalisation is right where torch's own is not, and equals it where it is."""

from typing import Any

import pytest
import torch
from torch import Tensor, func

import xfn
from xfn import random
from xfn._core.errors import ShapeError

from ..cases import agree

PARAMS = {"weight": torch.randn(6, dtype=torch.float64), "bias": torch.randn(6, dtype=torch.float64)}


def torchs(x: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, (6,), PARAMS["weight"], PARAMS["bias"])


def ours(x: Tensor) -> Tensor:
    return xfn.layer_norm(PARAMS, x)


def test_second_derivatives_are_right_where_torchs_are_silently_wrong() -> None:
    """Of ``grad(jvp)``, where torch's own layer_norm errs; should that be mended, this fails and can go."""
    x, t = torch.randn(2, 3, 6, dtype=torch.float64)

    def slope(f: Any) -> Any:
        return func.grad(lambda x: func.jvp(lambda x: f(x).sin().sum(), (x,), (t,))[1])(x)

    want = func.jvp(func.grad(lambda x: torchs(x).sin().sum()), (x,), (t,))[1]  # type: ignore[misc]
    agree(slope(ours), want)
    assert (slope(torchs) - want).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_are_those_of_torch(dtype: torch.dtype) -> None:
    x, w, b = torch.randn(5, 40).to(dtype), torch.randn(40).to(dtype), torch.randn(40).to(dtype)
    want = torch.nn.functional.layer_norm(x.double(), (40,), w.double(), b.double())
    agree(xfn.layer_norm({"weight": w, "bias": b}, x), want, 2 * torch.finfo(dtype).eps)
    want = torch.nn.functional.rms_norm(x.double(), (40,), w.double(), 1e-6)
    agree(xfn.rms_norm({"weight": w}, x), want, 2 * torch.finfo(dtype).eps)


def test_a_large_mean_leaves_the_variance_alone() -> None:
    x = torch.randn(4, 512)
    agree(xfn.layer_norm({}, x + 4096), xfn.layer_norm({}, x), 1e-3)


def test_parameters_may_be_wider_than_data() -> None:
    x = torch.randn(3, 6).bfloat16()
    y = xfn.layer_norm({name: t.float() for name, t in PARAMS.items()}, x)
    assert y.dtype == torch.bfloat16


def test_a_sum_and_its_norm() -> None:
    x, y = torch.randn(2, 3, 6, dtype=torch.float64)
    normed, total = xfn.rms_norm_add({}, x, y)
    agree((normed, total), (xfn.rms_norm({}, x + y), x + y))


def test_softmax_is_torchs_and_hides() -> None:
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    agree((xfn.softmax(x), xfn.log_softmax(x)), (x.softmax(-1), x.log_softmax(-1)))
    mask = torch.tensor([[True, False, True, True, False], [False] * 5, [True] * 5])
    y = xfn.softmax(x, mask)
    agree(y[:, 0], x[:, 0].masked_fill(~mask[0], -torch.inf).softmax(-1))
    assert not y[:, 1].any()
    slope = func.grad(lambda x: xfn.log_softmax(x, mask)[..., 0, 0].sum())(x)
    assert torch.equal(slope != 0, (mask & torch.tensor([[True], [False], [False]])).expand(2, 3, 5))


def test_what_is_wrong_is_said() -> None:
    x = torch.randn(2, 3, 6)
    with pytest.raises(
        ValueError, match=r"the parameters of layer_norm are weight\?, bias\?, but these have scale besides"
    ):
        xfn.layer_norm({"scale": torch.ones(6)}, x)  # type: ignore[typeddict-unknown-key]
    with pytest.raises(ShapeError, match=r"weight \[\.\.\., E\] has E=5, but x has E=6"):
        xfn.layer_norm({"weight": torch.ones(5)}, x)
    with pytest.raises(ShapeError, match="map over the parameters of many models with vmap"):
        xfn.rms_norm({"weight": torch.ones(2, 6)}, x)
    with pytest.raises(TypeError, match="takes its parameters as a dict, but got Tensor"):
        xfn.layer_norm(torch.ones(6), x)
    with pytest.raises(ShapeError, match=r"x is \[2, 3, 6\], but y is \[3, 6\]"):
        xfn.rms_norm_add({}, x, x[0])
    with pytest.raises(TypeError, match=r"write y\.to"):
        xfn.rms_norm_add({}, x, x.double())


def test_an_ensemble_of_parameters_owns_its_storage() -> None:
    many: Any = func.vmap(lambda key: xfn.init_layer_norm(key, 6))(random.split(random.key(0), 3))
    assert all(t.is_contiguous() and t.shape == (3, 6) for t in many.values())
