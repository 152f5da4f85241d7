"""Triton's kernels for rows and their maps, interpreted: what ``laws/test_kernels.py`` does not ask of every kernel."""

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func

import xfn
from xfn import bias, random
from xfn.ops.fused_linear import FUSED_LINEAR, fused_linear
from xfn.ops.rotary import ROTARY
from xfn.ops.swiglu import gated

from ..cases import error

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="triton does not interpret here")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def turned(x: Tensor, w: Tensor, b: Tensor, pairing: str, backend: str) -> Tensor:
    """Half of the features, or a pair at least, by tables that all rows share."""
    E = x.shape[-1]
    x, (cos, sin) = x.expand(*x.shape[:-1], max(2, E)), (t[: max(1, E // 4)].expand(x.shape[-2], -1) for t in (w, b))
    return ROTARY.bind(x.unsqueeze(-2), cos, sin, pairing=pairing, backend=backend)[0].squeeze(-2)


ROWS: dict[str, Callable[..., Tensor]] = {
    "layer_norm": lambda x, w, b, **on: xfn.layer_norm({"weight": w, "bias": b}, x, **on),
    "rms_norm": lambda x, w, b, **on: xfn.rms_norm({"weight": w}, x, **on) + 0 * b,
    "softmax": lambda x, w, b, **on: xfn.softmax(x * w + b, bias.local(9, 2), **on),
    "log_softmax": lambda x, w, b, **on: xfn.log_softmax(x * w + b, **on),
    "dropout": lambda x, w, b, **on: xfn.dropout(x * w, 0.3, b, "silu", x, key=random.key(2), **on),
    "swiglu": lambda x, w, b, **on: gated(x * w, x, b, w, 0.3, random.key(2), **on),
    "rotary": lambda x, w, b, **on: turned(x, w, b, "halves", **on),
    "rotary of adjacent pairs": lambda x, w, b, **on: turned(x, w, b, "adjacent", **on),
}
rows = pytest.mark.parametrize("f", ROWS.values(), ids=ROWS)


def both(f: Callable[..., Tensor], x: tuple[Tensor, ...], backend: str) -> list[Tensor]:
    """Value and gradient."""
    y, pull = func.vjp(lambda *x: f(*x, backend=backend), *x)[:2]
    return [y, *pull(torch.linspace(-1, 1, y.numel()).view(y.shape).to(y))]


@rows
@pytest.mark.turns("dtype", "E")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("E", [1, 8, 15, 16, 17, 64, 100])
def test_rows_of_any_length(f: Callable[..., Tensor], E: int, dtype: torch.dtype) -> None:
    """Of one tile or many; and rows that do not lie side by side, nor their numbers."""
    x = torch.randn(2, E, 5).mT, torch.randn(2 * E)[::2], torch.randn(E)
    got, same = (both(f, tuple(t.to(dtype) for t in x), backend) for backend in ("triton", "reference"))
    exact = both(f, tuple(t.to(dtype).double() for t in x), "reference")
    for mine, theirs, right in zip(got, same, exact, strict=True):
        hidden = right == -torch.inf
        assert torch.equal(mine == -torch.inf, hidden)
        mine, theirs, right = (torch.where(hidden, 0, t) for t in (mine, theirs, right))
        assert error(mine, right) <= max(1e-10, 3 * error(theirs, right) + 4 * torch.finfo(dtype).eps)


@rows
def test_parts_have_their_own_parameters(f: Callable[..., Tensor]) -> None:
    """Per-example gradients under a map equal those of each example alone."""
    x, w, b = torch.randn(3, 5, 20), torch.randn(3, 20), torch.randn(20)
    slope = func.grad(lambda *x: f(*x, backend="triton").sin().sum(), (0, 1, 2))
    mapped = func.vmap(slope, (0, 0, None))(x, w, b)
    for i in range(3):
        alone = slope(x[i], w[i], b)
        assert all(torch.allclose(a[i], t, atol=1e-5) for a, t in zip(mapped, alone, strict=True))


@rows
def test_bits_of_sums_repeat(f: Callable[..., Tensor]) -> None:
    x = torch.randn(2, 13, 20), torch.randn(20), torch.randn(20)
    assert all(map(torch.equal, both(f, x, "triton"), both(f, x, "triton")))


def test_dropout_draws_the_bits_of_all_backends() -> None:
    x, keys = torch.ones(2, 3, 37), random.split(random.key(5), 2)
    got, want = (xfn.dropout(x, 0.4, key=keys, backend=backend) == 0 for backend in ("triton", "reference"))
    assert torch.equal(got, want)
    assert want.any()


LIES: dict[str, Callable[[int], Tensor]] = {
    "side by side": lambda E: torch.randn(2, 3, 5, E),
    "apart": lambda E: torch.randn(3, 5, 2 * E)[..., E:],
    "without the first": lambda E: torch.randn(3, 19, E)[:, 2:],
    "expanded": lambda E: torch.randn(5, E).expand(3, 5, E),
    "strewn": lambda E: torch.randn(3, E, 5).mT,
}
LOOKS: dict[str, Callable[..., Any]] = {
    "grad": lambda f, x: f(x.detach().requires_grad_()).detach(),
    "vjp": lambda f, x: func.vjp(f, x)[0],
    "jvp": lambda f, x: func.jvp(f, (x,), (x,))[0],
    "vmap": lambda f, x: func.vmap(f)(x),
}


@pytest.mark.turns("dtype", "x")
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("E", [1, 16, 37])
@pytest.mark.parametrize("x", LIES.values(), ids=LIES)
def test_a_map_finds_its_rows(x: Callable[[int], Tensor], E: int, dtype: torch.dtype) -> None:
    """Wherever they lie, and drops as all backends do."""
    at, weight, b = x(E).to(dtype), torch.randn(E, 21).mT.to(dtype), torch.randn(21).to(dtype)
    residual = torch.randn(*at.shape[:-1], 21).to(dtype)

    def mapped(cast: torch.dtype, backend: str, p: float, key: Any) -> Tensor:
        x, w, bias, y = (t.to(cast) for t in (at, weight, b, residual))
        return fused_linear(x, w, p, bias, "gelu", y, key=key, backend=backend)

    for p, key in ((0.0, None), (0.4, random.key(1))):
        got, same = (mapped(dtype, backend, p, key) for backend in ("triton", "reference"))
        exact = mapped(torch.float64, "reference", p, key)
        assert error(got, exact) <= 3 * error(same, exact) + 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_map_is_one_kernel_where_nobody_looks(look: Callable[..., Any]) -> None:
    """Then its sums are rounded once, and otherwise twice, which shows."""
    x, weight, b = (torch.randn(shape).bfloat16() for shape in ((2, 20, 33), (40, 33), (40,)))
    ours = lambda x: xfn.linear({"weight": weight, "bias": b}, x, "gelu", backend="triton")
    apart = lambda x: xfn.dropout(x @ weight.mT, 0.0, b, "gelu", backend="triton")
    once = FUSED_LINEAR.bind(x, weight, b, None, None, p=0.0, activation="gelu", backend="triton")[0]
    assert not torch.equal(once, apart(x))
    assert torch.equal(ours(x), once)
    with torch.no_grad():
        assert torch.equal(ours(x.clone().requires_grad_()), once)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), once)
    assert torch.equal(look(ours, x), look(apart, x))


def test_an_mlp_drops_the_same_in_one_kernel_a_map() -> None:
    params, x = xfn.init_mlp(random.key(0), 20, 36), torch.randn(2, 17, 20)
    of = lambda x, backend: xfn.mlp(params, x, "relu", 0.3, key=random.key(1), backend=backend)
    assert error(of(x, "triton"), of(x, "reference")) <= 32 * torch.finfo(x.dtype).eps
    assert error(of(x.requires_grad_(), "triton"), of(x, "reference")) <= 32 * torch.finfo(x.dtype).eps


def test_examples_that_share_a_key_count_their_own_rows() -> None:
    x, weight, key = torch.randn(3, 5, 20), torch.randn(21, 20), random.key(1)
    f = lambda x: FUSED_LINEAR.bind(x, weight, None, None, key, p=0.4, activation="relu", backend="triton")[0]
    assert torch.equal(func.vmap(f)(x), torch.stack([f(t) for t in x]))


def test_a_map_of_float64_is_torch_s() -> None:
    x = torch.randn(3, 20, dtype=torch.float64)
    apart = xfn.dropout(x @ x.mT, 0.0, None, "silu", backend="triton")
    assert torch.equal(xfn.linear({"weight": x}, x, "silu", backend="triton"), apart)


def test_a_row_that_sees_nothing() -> None:
    """Is zero, or −∞, and takes any cotangent."""
    sees = bias.span(torch.tensor([0, 3, 30]), torch.tensor([2, 3, 40]))
    for f, nothing in ((xfn.softmax, 0.0), (xfn.log_softmax, -torch.inf)):
        y, pull = func.vjp(lambda x, f=f: f(x, sees, backend="triton"), torch.randn(3, 20))[:2]
        (dx,) = pull(torch.full((3, 20), torch.inf).index_fill(0, torch.tensor([0]), 1.0))
        assert (y[1:] == nothing).all()
        assert (dx[1:] == 0).all()
        assert dx[0].isfinite().all()


def test_rows_that_are_too_long_are_refused() -> None:
    with pytest.raises(xfn.Unsupported, match="rows of 65537 numbers are longer than 65536"):
        xfn.softmax(torch.zeros(1, 65537), backend="triton")


def test_a_bug_in_the_kernels_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the sanitizer."""
    small: Any = pytest.importorskip("tests.gpu.small", reason="triton is not installed")
    sanitizer: Any = pytest.importorskip("tests.gpu.sanitizer", reason="triton is not installed")
    xfn.rms_norm({}, torch.randn(3, 17), backend="triton")
    for title, module in list(sys.modules.items()):
        if title.startswith("xfn.kernels.triton") and hasattr(module, "within"):
            monkeypatch.setattr(module, "within", small.unbounded)
    with pytest.raises(sanitizer.Broken, match="out of bounds"):
        xfn.rms_norm({}, torch.randn(3, 17), backend="triton")
