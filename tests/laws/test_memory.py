"""Second-order memory is O(M + N): nothing but the reference holds a matrix of logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func

import xfn
from benchmarks.measure import MIB, peak_bytes
from xfn import bias
from xfn.ops.attention import ATTENTION

from ..cases import complete

L = 8192
LIMIT = 64 * MIB
"""A fourth of the matrix of logits alone."""

Attend = Callable[..., Tensor]


def forward_backward(attend: Attend, x: tuple[Tensor, ...], t: tuple[Tensor, ...]) -> Any:
    x = tuple(v.requires_grad_() for v in x)
    return torch.autograd.grad(attend(*x), x, t[0])


def jvp(attend: Attend, x: tuple[Tensor, ...], t: tuple[Tensor, ...]) -> Any:
    return func.jvp(attend, x, t)


def hvp(attend: Attend, x: tuple[Tensor, ...], t: tuple[Tensor, ...]) -> Any:
    return func.jvp(func.grad(lambda *x: attend(*x).square().sum(), (0, 1, 2)), x, t)


def double_backward(attend: Attend, x: tuple[Tensor, ...], t: tuple[Tensor, ...]) -> Any:
    slope = func.grad(lambda *x: attend(*x).square().sum(), (0, 1, 2))
    return func.grad(lambda *x: sum((g * v).sum() for g, v in zip(slope(*x), t, strict=True)), (0, 1, 2))(*x)


def jvp_jvp(attend: Attend, x: tuple[Tensor, ...], t: tuple[Tensor, ...]) -> Any:
    return func.jvp(lambda *x: func.jvp(attend, x, t), x, t)


USES = (forward_backward, jvp, hvp, double_backward, jvp_jvp)


@pytest.mark.parametrize("backend", complete(ATTENTION))
@pytest.mark.parametrize("use", USES, ids=lambda f: f.__name__)
def test_peak_stays_under_a_fourth_of_the_logits(use: Callable[..., Any], backend: str) -> None:
    """Of all keys, or of those in the past, by turns."""
    mask = bias.causal() if USES.index(use) % 2 else None
    x = tuple(torch.randn(L, 1, 64) for _ in range(3))
    t = tuple(torch.randn(L, 1, 64) for _ in range(3))
    peak = peak_bytes(lambda: use(lambda *x: xfn.attention(*x, mask, backend=backend), x, t))
    assert peak < LIMIT, f"{peak / MIB:.1f} MiB"


def test_the_measure_sees_a_matrix_of_logits() -> None:
    q = torch.randn(L // 4, 1, 64)
    peak = peak_bytes(lambda: xfn.attention(q, q, q, backend="reference"))
    assert peak > (L // 4) ** 2 * 4


@pytest.mark.parametrize("backend", complete(ATTENTION))
def test_a_bias_costs_its_gradient_and_no_more(backend: str) -> None:
    q, b = torch.randn(2048, 1, 64), torch.randn(1, 2048, 2048)
    slope = func.grad(lambda q, b: xfn.attention(q, q, q, b, backend=backend).square().sum(), (0, 1))
    assert peak_bytes(lambda: slope(q, b)) < LIMIT
