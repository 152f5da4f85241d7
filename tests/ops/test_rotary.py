"""Rotary positions: turns that are exact far out, whose differences products see, in every way to ask for them."""

import math
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, func

import xfn
from xfn import ShapeError
from xfn.ops.rotary import PAIRINGS

from ..cases import agree

FAR = 100_000


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def turned(x: Tensor, positions: Any = 0, **options: Any) -> Tensor:
    return xfn.rotary(x, x, positions, **options)[0]


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize(("dtype", "epsilons"), [(torch.float32, 3), (torch.bfloat16, 1), (torch.float16, 1)], ids=str)
def test_far_out_the_error_is_that_of_arithmetic(dtype: torch.dtype, epsilons: int, pairing: str) -> None:
    """Relative to a pair's length; an angle of bfloat16 would be off by dozens of turns, and one of float32 by 0.005.
    Cosine, product and sum are each rounded once, and half types once more at the end."""
    x = drawn(64, 2, 64, dtype=dtype)
    y, want = turned(x, FAR, pairing=pairing), turned(x.double(), FAR, pairing=pairing)
    pairs, dim = ((2, 32), -2) if pairing == "halves" else ((32, 2), -1)
    errors = (y.double() - want).unflatten(-1, pairs).abs().amax(dim)
    assert y.dtype == dtype
    assert (errors / x.double().unflatten(-1, pairs).norm(dim=dim)).max() < epsilons * torch.finfo(dtype).eps


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("width", [None, 6], ids=["whole", "partial"])
def test_products_depend_on_the_difference_of_positions(pairing: str, width: int | None) -> None:
    q, k = drawn(5, 2, 8, dtype=torch.float32), drawn(7, 2, 8, dtype=torch.float32)

    def products(start: int) -> Tensor:
        return torch.einsum("mhk,nhk->hmn", *xfn.rotary(q, k, start, start, width=width, pairing=pairing))

    for start in (FAR, -3):
        agree(products(start), products(0), 8 * 8 * torch.finfo(torch.float32).eps)
    assert (torch.einsum("mhk,nhk->hmn", *xfn.rotary(q, k, 1, 0)) - products(0)).abs().max() > 1e-2


def test_adjacent_pairs_are_complex_numbers() -> None:
    x = drawn(2, 5, 3, 8)
    theta = torch.arange(5.0, dtype=torch.float64)[:, None, None] * 10000.0 ** (-torch.arange(4.0).double() / 4)
    want = torch.view_as_complex(x.unflatten(-1, (4, 2))) * torch.polar(torch.ones_like(theta), theta)
    agree(turned(x, pairing="adjacent"), torch.view_as_real(want).flatten(-2))


def test_pairings_differ_in_the_order_of_features() -> None:
    x = drawn(5, 3, 8)
    order = torch.arange(8).view(2, 4).mT.flatten()  # adjacent places, and the features of halves in them
    assert torch.equal(turned(x)[..., order], turned(x[..., order], pairing="adjacent"))


def test_the_gradient_turns_back() -> None:
    x, dy = drawn(2, 5, 3, 8)
    (dx,) = func.vjp(lambda x: turned(x, 9, width=6), x)[1](dy)
    agree(dx, turned(dy, -torch.arange(9, 14), width=6))
    agree(turned(x, 9).norm(dim=-1), x.norm(dim=-1))


def test_positions_may_be_given_one_by_one_and_by_example() -> None:
    q, k = drawn(2, 5, 3, 8), drawn(2, 5, 1, 8)
    starts = torch.tensor([7, FAR])
    each = [xfn.rotary(q[i], k[i], int(starts[i])) for i in range(2)]
    want = tuple(torch.stack(pair) for pair in zip(*each, strict=True))
    at = starts[:, None] + torch.arange(5)
    for got in (
        xfn.rotary(q, k, at),
        xfn.rotary(q, k, at.int(), at),
        func.vmap(xfn.rotary)(q, k, starts),
        func.vmap(xfn.rotary)(q, k, at),
        torch.compile(func.vmap(xfn.rotary), backend="aot_eager", fullgraph=True)(q, k, starts),
    ):
        agree(got, want, 1e-12)
    assert xfn.rotary(q[0], k[0], at)[0].shape == (2, 5, 3, 8)


@pytest.mark.parametrize(("M", "N"), [(7, 4), (1, 9), (0, 3)])
def test_queries_and_keys_have_lengths_and_places_of_their_own(M: int, N: int) -> None:
    q, k = drawn(M, 2, 4), drawn(N, 1, 4)
    agree(xfn.rotary(q, k), (turned(q), turned(k)))
    agree(xfn.rotary(q, k, N, 0), (turned(q, N), turned(k)))
    agree(xfn.rotary(q, k, 0, torch.arange(N) * 2), (turned(q), turned(k, torch.arange(N) * 2)))


def test_a_part_of_the_features_stays() -> None:
    x = drawn(5, 3, 9)
    for pairing in PAIRINGS:
        y = turned(x, width=4, pairing=pairing)
        assert torch.equal(y[..., 4:], x[..., 4:])
        agree(y[..., :4], turned(x[..., :4], pairing=pairing))
    assert torch.equal(turned(x, width=0), x)


def test_scaling() -> None:
    x, at = drawn(5, 3, 8), torch.arange(5) * 4
    agree(turned(x, at, scaling=4.0), turned(x))
    agree(turned(x, at, scaling=lambda f: f / 4), turned(x))
    ntk = turned(x, base=10000.0 * 16 ** (8 / 6))  # the lowest frequency is divided by 16, the highest stays
    agree(ntk[..., [3, 7]], turned(x, scaling=16.0)[..., [3, 7]])
    agree(ntk[..., [0, 4]], turned(x)[..., [0, 4]])


def test_llama3_frequencies_are_those_of_each_branch() -> None:
    factor, low, high, length = 16.0, 1.0, 32.0, 8192
    found = []
    for f in (frequencies := 500000.0 ** (-torch.arange(64.0, dtype=torch.float64) / 64)).tolist():
        wavelength = 2 * math.pi / f
        if wavelength > length / low:
            found.append(f / factor)
        elif wavelength > length / high:
            t = (length / wavelength - low) / (high - low)
            found.append((1 - t) * f / factor + t * f)
        else:
            found.append(f)
    got = xfn.llama3_frequencies(frequencies, factor, length, low, high)
    agree(got / frequencies, torch.tensor(found, dtype=torch.float64) / frequencies, 1e-14)
    ratios = {round(r, 12) for r in (got / frequencies).tolist()}
    assert {1.0, 1 / factor} < ratios
    x = drawn(3, 1, 128)
    scaled = turned(x, 9, base=500000.0, scaling=partial(xfn.llama3_frequencies, factor=factor, high=high))
    angle = torch.atan2(scaled[0, 0, 64 + 60], scaled[0, 0, 60]) - torch.atan2(x[0, 0, 64 + 60], x[0, 0, 60])
    agree(angle.remainder(2 * math.pi), torch.tensor(9 * found[60], dtype=torch.float64))


Q = torch.zeros(5, 2, 4)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: turned(Q, pairing="half"), ValueError, "no pairing is called 'half'; there are halves, adjacent"),
        (lambda: turned(Q[..., :3]), ShapeError, "q has K=3 features, which do not pair: pass width=2"),
        (lambda: turned(Q, width=3), ValueError, "width=3 must be an even number of features, up to K=4"),
        (lambda: turned(Q, width=6), ValueError, "width=6 must be an even number of features, up to K=4"),
        (lambda: turned(Q, 0.5), TypeError, "positions is an integer, or a tensor of integers [..., M], but got 0.5"),
        (lambda: turned(Q, torch.zeros(5)), TypeError, "but got a tensor of torch.float32"),
        (lambda: turned(Q, torch.arange(4)), ShapeError, "positions [..., M] has shape [4], but there are M=5 tokens"),
        (lambda: turned(Q[None].expand(2, 5, 2, 4), torch.zeros(3, 5).long()), ShapeError, "does not broadcast"),
        (
            lambda: xfn.rotary(Q, Q[:3], torch.arange(5).int()),
            ShapeError,
            "positions [..., M] are those of M=5 queries, but k has N=3: pass k_positions too",
        ),
        (lambda: xfn.rotary(Q, Q[:3], 0, torch.arange(5)), ShapeError, "k_positions [..., M] has shape [5]"),
        (lambda: xfn.rotary(Q, Q[..., :2]), ShapeError, "k [..., N, G, K] has K=2, but q has K=4"),
        (lambda: xfn.rotary(Q, Q.double()), TypeError, "q is torch.float32, but k is torch.float64"),
        (lambda: turned(Q, base=0), ValueError, "base=0 must be above 0"),
        (lambda: turned(Q, scaling=0), ValueError, "scaling=0 must be above 0: positions are divided by it"),
        (lambda: xfn.llama3_frequencies(Q, low=4, high=4), ValueError, "low=4 must be below high=4"),
    ],
)
def test_errors_say_what_to_write(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        call()


@pytest.mark.parametrize("learned", [False, True])
def test_what_is_turned_is_kept_only_for_gradients_of_angles(learned: bool) -> None:
    q, f = torch.randn(5, 2, 8, requires_grad=True), torch.ones(4, requires_grad=learned)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        xfn.rotary(q, q, scaling=lambda given: given * f)
    found = any(t.shape == q.shape and t.untyped_storage().data_ptr() == q.untyped_storage().data_ptr() for t in saved)
    assert found == learned


@pytest.mark.parametrize("pairing", ["halves", "adjacent"])
@pytest.mark.parametrize("learned", [False, True])
def test_turns_have_second_derivatives_outside_of_transforms(learned: bool, pairing: str) -> None:
    q = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    f = torch.rand(2, dtype=torch.float64, requires_grad=learned)
    turned = lambda q, f: xfn.rotary(q, q, pairing=pairing, scaling=lambda given: given * f)[0].square() * q
    assert torch.autograd.gradcheck(turned, (q, f))
    assert torch.autograd.gradgradcheck(turned, (q, f))
