"""A batch is its examples: vmap equals a loop, a batch equals its flattening, and no kernel runs once per example."""

from itertools import product

import pytest
import torch
from torch import Tensor, func
from torch.utils._pytree import tree_map

import xfn
from xfn import bias, random

from ..cases import Subject, agree, filled, subjects, tiny
from ..transforms import loss
from ..watch import watch


@subjects(backends=("each",))
def test_vmap_is_a_loop(subject: Subject) -> None:
    """Each operand mapped or not, in every combination."""
    x, xs = subject.draw(0), subject.draw(1, examples=3)

    def valued(*x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y = subject(*x)
        return loss(lambda: y)(), y

    for mapped in product((True, False), repeat=len(x)):
        if not any(mapped):
            continue
        at = lambda i: tuple(s[i] if m else v for s, v, m in zip(xs, x, mapped, strict=True))
        given = tuple(s if m else v for s, v, m in zip(xs, x, mapped, strict=True))
        dims = tuple(0 if m else None for m in mapped)
        every = tuple(range(len(x)))
        slope, whole = func.grad(loss(subject), every), func.grad(valued, every, has_aux=True)
        loop = tree_map(lambda *each: torch.stack(each), *(whole(*at(i)) for i in range(3)))
        for f, looped in zip((slope, subject), loop, strict=True):
            agree(func.vmap(f, dims)(*given), looped)


@subjects(filled, backends=("each",))
def test_inputs_keep_their_values_and_may_lie_anyhow_in_memory(subject: Subject) -> None:
    x = subject.draw()
    kept = [v.clone() for v in x]
    every = tuple(range(len(x)))
    want = subject(*x), func.grad(loss(subject), every)(*x)
    for scatter in (
        lambda v: v.transpose(0, -1).contiguous().transpose(0, -1),
        lambda v: torch.stack([v, v], -1)[..., 0],
        lambda v: torch.cat([v, v], 0)[: len(v)],
    ):
        other = tuple(scatter(v) for v in x)
        agree((subject(*other), func.grad(loss(subject), every)(*other)), want, 1e-12)
    assert all(torch.equal(a, b) for a, b in zip(x, kept, strict=True))


@subjects(tiny, backends=("each",))
def test_expanded_inputs_equal_copies(subject: Subject) -> None:
    x = tuple(v[None].expand(3, *v.shape) for v in subject.draw())
    every = tuple(range(len(x)))
    f = lambda *x: (func.vmap(subject)(*x), func.vmap(func.grad(loss(subject), every))(*x))
    agree(f(*x), f(*(v.contiguous() for v in x)), 1e-14)


@pytest.mark.parametrize("backend", [None, "tiled"])
def test_a_batch_of_any_rank_is_its_flattening(backend: str | None) -> None:
    q, k, v, b = (random.normal(key, (2, 3, 5, 2, 4), dtype=torch.float64) for key in random.split(random.key(0), 4))
    b = b.transpose(-2, -3)[..., :1] @ torch.ones(1, 5, dtype=torch.float64)  # [2, 3, H, M, N]
    key = random.key(7)
    f = lambda q, k, v, b: xfn.attention(q, k, v, bias.causal() + bias.dense(b), 0.3, key=key, backend=backend)
    agree(f(q, k, v, b).flatten(0, 1), f(*(t.flatten(0, 1) for t in (q, k, v, b))), 0.0)


def test_batches_broadcast() -> None:
    q, k, v = torch.randn(4, 1, 5, 2, 3), torch.randn(3, 6, 2, 3), torch.randn(6, 2, 3)
    out, lse = xfn.attention_with_lse(q, k, v)
    whole = [t.expand(4, 3, *t.shape[-3:]) for t in (q, k, v)]
    agree((out, lse), xfn.attention_with_lse(*whole), 1e-6)
    assert lse.shape == (4, 3, 2, 5)


EXAMPLES = 64


@pytest.mark.parametrize("backend", [None, "tiled"])
def test_per_example_gradients_run_each_kernel_once(backend: str | None) -> None:
    q, k, v = torch.randn(3, EXAMPLES, 16, 2, 8)
    f = lambda q, k, v: xfn.attention(q, k, v, bias.causal(), backend=backend).square().sum()
    seen = watch(lambda: func.vmap(func.grad(f, (0, 1, 2)))(q, k, v))
    assert seen.counts == {"attention_forward": 1, "attention_backward": 1}


def test_no_transform_runs_a_kernel_per_example() -> None:
    q, k, v = torch.randn(3, EXAMPLES, 8, 2, 4)
    f = lambda q, k, v: xfn.attention(q, k, v).square().sum()
    every = (0, 1, 2)
    hvp = lambda *x: func.jvp(func.grad(f, every), x, x)
    norm = lambda *x: sum(g.square().sum() for g in func.grad(f, every)(*x))
    for program in (hvp, func.grad(norm, every), lambda *x: func.jvp(f, x, x), func.grad(f)):
        one = watch(lambda: program(q[0], k[0], v[0])).counts
        assert watch(lambda: func.vmap(program)(q, k, v)).counts == one


def test_jacobians_run_a_kernel_once_for_all_rows() -> None:
    x: tuple[Tensor, ...] = tuple(torch.randn(3, 4, 2, 3))
    assert watch(lambda: func.jacrev(xfn.attention)(*x)).counts["attention_backward"] == 1
    assert watch(lambda: func.jacfwd(xfn.attention)(*x)).counts["attention_jvp"] == 1


def test_a_bias_is_mapped_like_any_tree() -> None:
    q, k, v, b = torch.randn(3, 5, 2, 4), torch.randn(3, 5, 2, 4), torch.randn(3, 5, 2, 4), torch.randn(3, 2, 5, 5)
    one = lambda i: xfn.attention(q[i], k[i], v[i], bias.causal() + bias.dense(b[i]))
    agree(
        func.vmap(xfn.attention)(q, k, v, bias.causal() + bias.dense(b)), torch.stack([one(i) for i in range(3)]), 1e-6
    )
    shared = func.vmap(xfn.attention, (0, 0, 0, None))(q, k, v, bias.segments([2, 3]))
    agree(shared, xfn.attention(q, k, v, bias.segments([2, 3])), 1e-6)
    lengths = torch.tensor([[2, 3], [5, 0], [1, 4]])
    mapped = func.vmap(lambda q, k, v, n: xfn.attention(q, k, v, bias.segments(n)))(q, k, v, lengths)
    one = lambda i: xfn.attention(q[i], k[i], v[i], bias.segments(lengths[i].tolist()))
    agree(mapped, torch.stack([one(i) for i in range(3)]), 1e-6)
