"""Performers: features are what they should be, their sums are stable and exact, and the past is all that is seen."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.utils._python_dispatch import TorchDispatchMode

import xfn
from xfn import ShapeError, random
from xfn._core.dims import Dims
from xfn.parts.attention.favor import CHUNK, Favor

from ..cases import agree

MAPS = ("sm_orf", "sm_hyp", "sm_reg")
every_map = pytest.mark.parametrize("name", MAPS)
LENGTHS = (1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5)


def made(name: str, features: int | None = None, redraw: bool = False) -> Favor:
    return Favor(features, name, redraw)


def params(part: Favor, K: int, seed: int = 1) -> Any:
    return part.init(random.key(seed), Dims(model=K))


def draw(M: int, N: int, K: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(random.normal(random.key(i), (2, n, 2, K), dtype=dtype) for i, n in enumerate((M, N, N)))


def formula(part: Favor, p: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """All pairs, by logarithms; ``mask [..., M, N]``."""
    lq, lk = (part.logarithms(t.double().movedim(-2, -3), p["features"].double()) for t in (q, k))
    pairs = (lq[..., :, None, :] + lk[..., None, :, :]).logsumexp(-1)
    weights = pairs if mask is None else torch.where(mask, pairs, -torch.inf)
    return torch.einsum("...hmn,...nhv->...mhv", weights.softmax(-1), v.double())


@every_map
def test_columns_are_orthogonal_in_blocks_and_as_long_as_they_should_be(name: str) -> None:
    part, K = made(name), 16
    W = part.draw(random.key(0), K, 40, torch.float64)
    for block in W.split(K, 1):
        product = block.mT @ block
        agree(product - product.diagonal().diag(), torch.zeros_like(product), 1e-12)
    squares = func.vmap(lambda key: part.draw(key, K, 40))(random.split(random.key(1), 200)).square().sum(-2)
    spread = 0.0 if name == "sm_reg" else 2.0 * K  # of a chi-square's
    agree(squares.mean(), torch.tensor(float(K)), 0.02)
    agree(squares.var(), torch.tensor(spread), 0.1)


@every_map
def test_features_estimate_the_softmax_kernel(name: str) -> None:
    """Within a twentieth, over many draws."""
    part, K = made(name), 64
    q, k = 0.3 * random.normal(random.key(3), (2, 20, K))
    keys = random.split(random.key(4), 100)
    every = func.vmap(lambda key: part.draw(key, K, part._count(K)))(keys)
    phi = [func.vmap(lambda w, t=t: part.logarithms(t, w).exp())(every) for t in (q, k)]
    ratio = (phi[0] @ phi[1].mT).mean(0) / (q @ k.mT / K**0.5).exp()
    assert ratio.min() > 0.95
    assert ratio.max() < 1.05


@every_map
def test_the_error_falls_as_the_root_of_features(name: str) -> None:
    q, k, v = (0.4 * random.normal(random.key(i), (64, 1, 16)) for i in range(3))
    want, baseline = xfn.attention(q, k, v), v.mean(0, keepdim=True)

    def error(features: int) -> Tensor:
        part = made(name, features)
        each = func.vmap(lambda key: part.apply(part.init(key, Dims(model=16)), q, k, v))
        return (each(random.split(random.key(5), 30)) - want).square().mean()

    few, many = error(128), error(2048)
    assert name == "sm_reg" or 10 < few / many < 24  # sixteenfold, in the square; that of one length is biased
    assert many < (baseline - want).square().mean() / 10


@every_map
@pytest.mark.parametrize("M", LENGTHS)
def test_is_the_formula(name: str, M: int) -> None:
    part, (q, k, v) = made(name), draw(M, M)
    p = params(part, 8)
    agree(part.apply(p, q, k, v), formula(part, p, q, k, v))
    agree(part.apply(p, q, k, v, causal=True), formula(part, p, q, k, v, torch.ones(M, M).tril().bool()))
    one = part.apply(p, q, k[:, :, :1], v[:, :, :1], causal=True)
    k, v = (t[:, :, :1].expand(q.shape) for t in (k, v))
    agree(one, part.apply(p, q, k, v, causal=True))


@pytest.mark.parametrize("causal", [False, True])
def test_its_derivatives_are_those_of_the_formula(causal: bool) -> None:
    M, part, x = 2 * CHUNK + 3, Favor(), draw(2 * CHUNK + 3, 2 * CHUNK + 3)
    p, mask = params(part, 8), torch.ones(M, M).tril().bool() if causal else None
    ours = lambda q, k, v: part.apply(p, q, k, v, causal).sin().sum()
    theirs = lambda q, k, v: formula(part, p, q, k, v, mask).sin().sum()
    tangents = tuple(t.roll(1, 0) for t in x)
    for f in (
        lambda g: func.grad(g, (0, 1, 2))(*x),
        lambda g: func.jvp(g, x, tangents),
        lambda g: func.jvp(func.grad(g, (0, 1, 2)), x, tangents),
    ):
        agree(f(ours), f(theirs))


@pytest.mark.parametrize(("M", "N"), [(3, 50), (50, 3), (200, 7), (7, 200)])
def test_across(M: int, N: int) -> None:
    part, (q, k, v) = Favor(), draw(M, N)
    p = params(part, 8)
    agree(part.apply(p, q, k, v), formula(part, p, q, k, v))
    with pytest.raises(ShapeError, match=f"causal favor has one key for each query, but M={M} is not N={N}"):
        part.apply(p, q, k, v, causal=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [5.0, 30.0, 1000.0])
def test_large_numbers_are_as_exact_as_small_ones(size: float, causal: bool) -> None:
    part, (q, k, v) = Favor(), draw(100, 100, dtype=torch.float32)
    p = params(part, 8)
    mask = torch.ones(100, 100).tril().bool() if causal else None
    q, k = size * q, size * k
    logarithm = max(part.logarithms(t, p["features"]).abs().max().item() for t in (q, k))
    agree(part.apply(p, q, k, v, causal), formula(part, p, q, k, v, mask), 8 * logarithm * torch.finfo(q.dtype).eps)


def test_autocast_takes_no_digits_of_what_is_in_an_exponent() -> None:
    part, x = Favor(), draw(10, 10, dtype=torch.float32)
    p = params(part, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = part.apply(p, *x)
    agree(y, part.apply(p, *x), 0.0)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_not_seen(causal: bool) -> None:
    part, (q, k, v) = Favor(), draw(70, 70)
    p, kept = params(part, 8), random.bernoulli(random.key(9), 0.5, (2, 70)).index_fill(1, torch.arange(3), False)
    mask = kept[:, None, None] & (torch.ones(70, 70).tril().bool() if causal else True)
    want = torch.where(mask.any(-1).mT.unsqueeze(-1), formula(part, p, q, k, v, mask), 0)
    agree(part.apply(p, q, k, v, causal, kept), want)
    noise = torch.where(kept, 0, torch.inf)[..., None, None]
    agree(part.apply(p, q, k + noise, v + noise, causal, kept), want)
    slopes = func.grad(lambda q, k, v: part.apply(p, q, k, v, causal, kept).sin().sum(), (0, 1, 2))
    agree(slopes(q, k + noise, v + noise), slopes(q, k, v))
    f = lambda q, k, v: part.apply(p, q, k, v, causal, torch.zeros_like(kept))
    agree(f(q, k, v), torch.zeros_like(v), 0.0)
    assert all(not s.any() for s in func.grad(lambda *x: f(*x).sin().sum(), (0, 1, 2))(q, k, v))


@pytest.mark.parametrize("place", [1, 5, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_the_future_changes_no_bit(place: int) -> None:
    part, x = Favor(), draw(3 * CHUNK, 3 * CHUNK, dtype=torch.float32)
    p = params(part, 8)
    attend = lambda q, k, v: part.apply(p, q, k, v, causal=True)
    want = attend(*x)
    for noise in (0.1, 100.0):
        other = tuple(torch.cat([t[:, :place], noise * (1 + t[:, place:])], 1) for t in x)
        got = attend(*other)
        assert torch.equal(got[:, :place], want[:, :place])
        assert not torch.equal(got[:, place:], want[:, place:])


class Numbers(TorchDispatchMode):
    """How many are written."""

    count = 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = f(*args, **kwargs or {})
        self.count += out.numel() if isinstance(out, Tensor) else 0
        return out


@pytest.mark.parametrize("causal", [False, True])
def test_twice_the_length_is_twice_the_numbers(causal: bool) -> None:
    part = Favor()
    p, counts = params(part, 8), []
    for M in (2048, 4096):
        x = draw(M, M, dtype=torch.float32)
        loss = func.grad(lambda q, k, v: part.apply(p, q, k, v, causal).square().sum(), (0, 1, 2))
        with Numbers() as seen:
            loss(*x)
        counts.append(seen.count)
    assert counts[1] < 2.02 * counts[0]


def test_features_take_no_gradient_and_are_redrawn_for_every_key() -> None:
    q, k, v = draw(10, 10)
    part, still = made("sm_reg", redraw=True), Favor()
    p, key = params(part, 8), random.key(7)
    slope = func.grad(lambda p: part.apply(p, q, k, v).square().sum())(p)
    assert not slope["features"].any()
    agree(part.apply(p, q, k, v), still.apply(p, q, k, v), 0.0)
    agree(still.apply(p, q, k, v, key=key), still.apply(p, q, k, v), 0.0)
    drawn = part.apply(p, q, k, v, key=key)
    assert not torch.allclose(drawn, part.apply(p, q, k, v, key=random.key(8)))
    keys = random.split(key, 2)
    one = partial(part.apply, p)
    agree(drawn, torch.stack([one(q[i], k[i], v[i], key=keys[i]) for i in range(2)]))
    agree(drawn, func.vmap(lambda q, k, v, key: one(q, k, v, key=key))(q, k, v, keys))


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match="feature_map='relu' is none of"):
        made("relu")
    with pytest.raises(ValueError, match="features=7 of sm_hyp cannot be: give a positive even number"):
        made("sm_hyp", 7)
    assert params(made("sm_orf", 7), 8)["features"].shape == (8, 7)
    assert params(Favor(), 8)["features"].shape == (8, 16)
