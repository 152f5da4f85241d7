"""2:4 sparsity of xformers.ops: what is kept against brute force, gradients, products, and what is refused."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.nn import functional as F

from tests.cases import agree
from xfn.compat.ops import Sparse24Tensor, sp24, sparsify24, sparsify24_like, sparsify24_ste

TILE = torch.tensor([[4.0, 3, 2, 1], [-1, -3, 0.6, 0.5], [1, 2, 3, 4], [10, 2, -1, 5]])
GREEDY = ["1100", "0110", "0011", "1001"]
KEPT = {
    "": GREEDY,
    "largest_values_greedy": GREEDY,
    "largest_abs_values_greedy": GREEDY,
    "causal1122": ["1000", "0010", "0011", "1001"],
    "largest_notranspose": ["1100", "0011", "0011", "1001"],
    "largest_abs_notranspose": ["1100", "1100", "0011", "1001"],
}
every_algorithm = pytest.mark.parametrize("algo", KEPT)
every_backend = pytest.mark.parametrize("backend", ["cutlass", "cusparselt"])


def brute(x: Tensor, algo: str) -> Tensor:
    """Which entries are kept, one after the other in Python."""
    keep = torch.zeros_like(x, dtype=torch.bool)
    wide = 4 if "notranspose" in algo else 2
    for top, left in product(range(0, x.shape[0], 4), range(0, x.shape[1], 4)):
        cells = list(product(range(top, min(top + 4, x.shape[0])), range(left, min(left + 4, x.shape[1]))))
        size = (lambda c: abs(float(x[c]))) if "abs" in algo else (lambda c: float(x[c]))
        causal = algo == "causal1122"
        for i, j in sorted(cells, key=lambda c: ((c[0] if causal else 0), -size(c))):
            room = (1, 1, 2, 2)[i - top] if causal else 2
            if keep[i, left : left + 4].sum() < room and keep[top : top + 4, j].sum() < wide:
                keep[i, j] = True
    return keep


@every_algorithm
def test_what_is_kept(algo: str) -> None:
    assert ["".join(map(str, row)) for row in sparsify24(TILE, algo).threads_masks.int().tolist()] == KEPT[algo]
    for shape in ((8, 12), (1, 7), (6, 5)):
        x = torch.randn(shape, dtype=torch.float64)
        assert torch.equal(sparsify24(x, algo).threads_masks, brute(x, algo))
    y, z = x.clone(), x.clone()
    y[2:] = torch.randn_like(y[2:])
    z[1:] = 9
    if algo == "causal1122":
        assert torch.equal(*(sparsify24(t, algo).threads_masks[:2] for t in (x, y)))
        assert torch.equal(*(sparsify24(t, algo).threads_masks[:1] for t in (x, z)))


@every_backend
@every_algorithm
def test_entries_are_packed_in_twos(algo: str, backend: str) -> None:
    s: Any = sparsify24(torch.randn(8, 8), algo, backend=backend)
    for values, where, whole in ((s.packed, s.meta, s), (s.packed_t, s.meta_t, s.t())):
        there = torch.arange(0, 8, 4).repeat_interleave(2) + where
        found = torch.zeros(8, 8).scatter_add(1, there, values)
        if "notranspose" not in algo or whole is s:
            assert torch.equal(found, whole._sp24_to_dense())


PATTERN: Any = sparsify24(torch.randn(8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
KINDS: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "24sparse": (lambda x: sparsify24(x), 0, 1),
    "24dense": (lambda x: sparsify24(x, gradient="24dense"), 0, 1),
    "ste": (lambda x: sparsify24(x, gradient="ste"), 1, 1),
    "sparsify24_ste": (lambda x: sparsify24_ste(x, bw_mul0=2, bw_mul1=0.5), 2, 0.5),
    "like": (lambda x: sparsify24_like(x, PATTERN), 0, 1),
    "like ste": (lambda x: sparsify24_like(x, PATTERN, "ste", out_dense=True), 1, 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str) -> None:
    """Of what is pruned and of what is kept; under transforms, and compiled."""
    sparsify, pruned, left = KINDS[kind]
    x, w = torch.randn(8, 12, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    keep = (PATTERN if "like" in kind else sparsify24(x)).threads_masks
    slopes = torch.where(keep, left, pruned).to(x)

    def ours(x: Tensor, w: Tensor) -> Tensor:
        return (w @ sparsify(x).t().t()).sin().sum()

    (ds, dw), value = func.grad_and_value(lambda s, w: (w @ s).sin().sum(), (0, 1))(x * keep, w)
    agree(ours(x, w), value)
    agree(func.grad(ours, (0, 1))(x, w), (slopes * ds, dw))
    agree(func.jvp(lambda x: ours(x, w), (x,), (x,))[1], (slopes * ds * x).sum())
    batch = torch.stack([x, -x])
    agree(func.vmap(func.grad(ours), (0, None))(batch, w), torch.stack([func.grad(ours)(t, w) for t in batch]))
    if "like" not in kind:
        agree(torch.compile(ours, fullgraph=True, backend="aot_eager")(x, w), value)


def test_gradients_of_functions_are_pruned() -> None:
    x, y = torch.randn(2, 8, 8, dtype=torch.float64)
    keep = sparsify24(x).threads_masks

    def ours(x: Tensor, y: Tensor) -> Tensor:
        s: Any = sparsify24(x, gradient="ste")
        found: Tensor = (F.gelu(s * y) + 3 * s)._sp24_to_dense().sin().sum()
        return found

    def theirs(x: Tensor, y: Tensor) -> Tensor:
        return ((F.gelu(x * y) + 3 * x) * keep).sin().sum()

    agree(ours(x, y), theirs(x, y))
    agree(func.grad(ours, (0, 1))(x, y), func.grad(theirs, (0, 1))(x, y))


@every_backend
def test_products(backend: str) -> None:
    a, b, c = (torch.randn(s, dtype=torch.float64) for s in ((16, 8), (8, 24), (24, 16)))
    s = sparsify24(a, backend=backend)
    d = s._sp24_to_dense()
    bias = torch.randn(16, dtype=torch.float64)
    pairs = [(s @ b, d @ b), (c @ s, c @ d), (s.t() @ c.t(), d.t() @ c.t()), (b.t() @ s.t(), b.t() @ d.t())]
    agree([x for x, _ in pairs], [y for _, y in pairs])
    agree(F.linear(b.t(), s), b.t() @ d.t())
    if backend == "cusparselt":
        agree(F.linear(b.t(), s, bias), b.t() @ d.t() + bias)
        agree(torch.addmm(bias, b.t(), s.t()), b.t() @ d.t() + bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = sparsify24(a.float(), backend=backend)
        assert cast.dtype == (cast @ b.float()).dtype == torch.bfloat16


def test_patterns_are_shared_by_what_comes_of_them() -> None:
    x, y = torch.randn(2, 8, 8)
    s, other = sparsify24(x), sparsify24(y)
    like: Any = sparsify24_like(y, s)
    keep = s.threads_masks
    for got, want in ((s + like, (x + y) * keep), (s * y, x * y * keep), (F.relu(s) + s, (x.relu() + x) * keep)):
        assert isinstance(got, Sparse24Tensor)
        agree(got._sp24_to_dense(), want)
    turned, back = sparsify24_like(x.t(), s.t()), s.t()
    assert isinstance(turned, Sparse24Tensor)
    assert isinstance(back, Sparse24Tensor)
    assert torch.equal(turned.packed, back.packed)
    assert isinstance(s + s.t().t(), Sparse24Tensor)
    assert not back.threads_masks.is_contiguous()
    assert sparsify24(s) is s
    assert type(sparsify24_like(x, s, out_dense=True)) is Tensor
    assert repr(s) == "Sparse24TensorCutlass(shape=torch.Size([8, 8]))"
    for wrong in (lambda: s + other, lambda: s + s.t(), lambda: s + y, lambda: s @ other):
        with pytest.raises(ValueError, match=r"keep the same entries|sparse"):
            wrong()


def test_leaves_are_detached() -> None:
    x = torch.randn(8, 8, requires_grad=True)
    s = sparsify24(x)
    assert s.requires_grad
    leaf = s.detach()
    assert not (leaf * 2).requires_grad
    doubled = leaf.requires_grad_() * 2
    doubled.backward(torch.ones(8, 8))
    assert x.grad is None
    assert torch.equal(leaf.grad, 2.0 * s.threads_masks)


s = sparsify24(torch.randn(8, 8))
fast = sparsify24(torch.randn(8, 8), backend="cusparselt")
REFUSED: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "algorithm": (RuntimeError, "no algorithm is called 'biggest'", lambda: sparsify24(TILE, "biggest")),
    "gradient": (ValueError, "gradient='dense' must be one of", lambda: sparsify24(TILE, gradient="dense")),
    "gradient like": (ValueError, "gradient='x' must be one of", lambda: sparsify24_like(TILE, sparsify24(TILE), "x")),
    "backend": (AssertionError, "backend='dense' must be", lambda: sparsify24(TILE, backend="dense")),
    "pattern": (ValueError, "must be a Sparse24Tensor, but is a Tensor", lambda: sparsify24_like(TILE, TILE)),
    "shape": (ValueError, r"shape \[4, 4\], but the pattern \[8, 8\]", lambda: sparsify24_like(TILE, s)),
    "matrix": (NotImplementedError, "matrices alone", lambda: sparsify24(TILE[0])),
    "vector": (NotImplementedError, "no product of", lambda: s @ torch.randn(8)),
    "batch": (NotImplementedError, "no product of", lambda: s @ torch.randn(5, 8, 8)),
    "sides": (NotImplementedError, "no product of", lambda: s @ torch.randn(7, 8)),
    "bias": (NotImplementedError, "adds no bias", lambda: F.linear(torch.randn(8, 8), s, torch.randn(8))),
    "addmm": (NotImplementedError, "addmm takes", lambda: torch.addmm(torch.randn(8, 8), torch.randn(8, 8), s)),
    "aligned": (NotImplementedError, "aligned to 8", lambda: fast @ torch.randn(8, 4)),
    "dtype": (NotImplementedError, "the same data type", lambda: fast @ torch.randn(8, 8).double()),
    "view": (NotImplementedError, "has no view", lambda: s.view(64)),
    "sum": (NotImplementedError, "has no sum", lambda: s.sum()),
    "unbind": (NotImplementedError, "has no unbind", lambda: s.unbind()),
    "in place": (NotImplementedError, "has no zero_", lambda: s.zero_()),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_is_refused(wrong: str) -> None:
    kind, match, call = REFUSED[wrong]
    before = s._sp24_to_dense().clone()
    with pytest.raises(kind, match=match):
        call()
    assert torch.equal(s._sp24_to_dense(), before)
    assert sp24.SLOPES["ste"] == (1, 1)
