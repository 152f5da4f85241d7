"""What is particular to the ops over a pattern's entries: they are dense ones under a mask, and touch nothing else."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.utils import _pytree as tree

import xfn
from xfn import KeyRequired, ShapeError, random
from xfn.sparsity import Csr

from ..cases import agree, error
from ..transforms import loss

BACKENDS = (None, "cpu", "gather", "reference")
backends = pytest.mark.parametrize("backend", BACKENDS)
MASK = random.bernoulli(random.key(0), 0.4, (7, 5))
HEADS = random.bernoulli(random.key(1), 0.4, (4, 7, 5))


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


@backends
@pytest.mark.parametrize("mask", [MASK, HEADS], ids=["shared", "per head"])
def test_the_three_are_dense_ones_under_the_mask(mask: Tensor, backend: str | None) -> None:
    csr = Csr.from_mask(mask)
    q, k, v = drawn(7, 4, 3), drawn(5, 2, 3), drawn(5, 2, 6)
    many = lambda t: t.repeat_interleave(2, -2)
    logits = torch.einsum("mhk,nhk->hmn", q, many(k))
    values = xfn.sddmm(csr, q, k, backend=backend)
    agree(csr.to_dense(values), torch.where(mask, logits, 0))
    weights = xfn.sparse_softmax(csr, values, backend=backend)
    want = torch.where(mask, logits, -torch.inf).softmax(-1).nan_to_num(0)
    agree(csr.to_dense(weights), want)
    agree(xfn.spmm(csr, weights, v, backend=backend), torch.einsum("hmn,nhv->mhv", want, many(v)))


@backends
def test_one_after_the_other_they_are_the_attention(backend: str | None) -> None:
    csr, x = Csr.from_mask(MASK), (drawn(7, 4, 3), drawn(5, 2, 3), drawn(5, 2, 6))

    def apart(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        values = xfn.sddmm(csr, q * 3**-0.5, k, backend=backend)
        return (xfn.spmm(csr, xfn.sparse_softmax(csr, values, backend=backend), v, backend=backend),)

    whole = lambda *x: (xfn.sparse_attention(csr, *x, backend=backend),)
    for other in (whole, lambda *x: (xfn.attention(*x, MASK),)):
        agree(apart(*x), other(*x))
        agree(*(func.jvp(func.grad(loss(f), (0, 1, 2)), x, x) for f in (apart, other)))


@backends
def test_the_same_key_drops_the_same_weights(backend: str | None) -> None:
    key, n = random.key(3), torch.eye(40, dtype=torch.float64)[:, None, :].expand(2, 40, 4, 40)
    mask = random.bernoulli(key, 0.5, (30, 40))
    q = drawn(2, 30, 4, 8)
    dense = xfn.attention(q, n[..., :8], n, mask, 0.4, key=key)
    sparse = xfn.sparse_attention(Csr.from_mask(mask), q, n[..., :8], n, 0.4, key=key, backend=backend)
    assert torch.equal(dense == 0, sparse == 0)
    agree(sparse, dense)


@backends
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_entry_touches_nothing(bad: float, backend: str | None) -> None:
    """Two documents, of which the second is spoilt throughout; the first does not change, in value or gradient."""
    mask = torch.block_diag(torch.ones(3, 2), torch.ones(4, 3)).bool()
    csr = Csr.from_mask(mask)
    x = (drawn(7, 2, 3), drawn(5, 2, 3), drawn(5, 2, 6))
    spoilt = tuple(t.index_fill(0, torch.arange(first, len(t)), bad) for t, first in zip(x, (3, 2, 2), strict=True))

    def parts(x: tuple[Tensor, ...]) -> Iterator[Any]:
        q, k, v = x
        values = xfn.sddmm(csr, q, k, backend=backend)
        first = 6  # entries of the first document
        yield values[..., :first]
        yield xfn.sparse_softmax(csr, values, backend=backend)[..., :first]
        yield xfn.spmm(csr, values, v, backend=backend)[:3]
        f = lambda *x: xfn.sparse_attention(csr, *x, backend=backend)[:3].sin().sum()
        yield xfn.sparse_attention(csr, *x, backend=backend)[:3]
        yield tuple(g[:2] for g in func.grad(f, (0, 1, 2))(*x))

    for got, want in zip(parts(spoilt), parts(x), strict=True):
        agree(got, want, 1e-13)


@backends
def test_rows_that_cannot_be_seen_give_zeros(backend: str | None) -> None:
    mask = MASK.index_fill(0, torch.tensor([2, 6]), False)
    csr, x = Csr.from_mask(mask), (drawn(7, 2, 3), drawn(5, 2, 3), drawn(5, 2, 3))
    out, lse = xfn.sparse_attention_with_lse(csr, *x, backend=backend)
    assert (out[[2, 6]] == 0).all()
    assert (lse[:, [2, 6]] == -torch.inf).all()
    slope = func.grad(lambda *x: xfn.sparse_attention_with_lse(csr, *x, backend=backend)[1].square().sum())(*x)
    assert (slope[[2, 6]] == 0).all()
    none = xfn.sparse_softmax(csr, torch.full((2, int(mask.sum())), -torch.inf), backend=backend)
    assert (none == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_long_rows_in_every_dtype(dtype: torch.dtype) -> None:
    """Rows of one entry, of a vector and of many; the tolerance is that of the reference in the dtype."""
    mask = random.bernoulli(random.key(4), torch.linspace(0, 1, 90)[:, None].expand(90, 300), (90, 300))
    q, k, v = drawn(90, 4, 72), drawn(300, 2, 72), drawn(300, 2, 40)
    csr = Csr.from_mask(mask)
    run = lambda to, b: xfn.sparse_attention(csr, *(t.to(dtype).to(to) for t in (q, k, v)), backend=b)
    exact = run(torch.float64, "reference")
    assert error(run(dtype, "cpu"), exact) <= 3 * error(run(dtype, "reference"), exact) + torch.finfo(dtype).eps


@pytest.fixture
def threads() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask", [random.bernoulli(random.key(5), 0.1, s) for s in ((300, 200), (2, 300, 200))])
def test_threads_change_no_bit(mask: Tensor, dtype: torch.dtype) -> None:
    csr, x = Csr.from_mask(mask), tuple(drawn(n, h, 24, dtype=dtype) for n, h in ((300, 2), (200, 1), (200, 1)))
    found = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        f = lambda q, k, v: (xfn.sparse_attention(csr, q, k, v, 0.1, key=random.key(6)),)
        slope = func.grad(loss(f), (0, 1, 2))
        found.append(tree.tree_leaves((f(*x), slope(*x), func.jvp(slope, x, x))))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_tables_that_lie_are_refused() -> None:
    """Whoever makes them by hand; no kernel reads what is not its own."""
    q, csr = drawn(7, 2, 3), Csr.from_mask(random.bernoulli(random.key(0), 0.5, (7, 7)))
    for name, worse in (("columns", csr.columns + 7), ("row_ends", csr.row_ends + 50), ("row_ends", -csr.row_ends)):
        fields = {**vars(csr), name: worse}
        with pytest.raises(RuntimeError, match="a pattern's"):
            xfn.sparse_attention(Csr(**fields), q, q, q, backend="cpu")


CSR, Q = Csr.from_mask(MASK), torch.zeros(7, 2, 3)
K = Q[:5]


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: xfn.sparse_attention(MASK, Q, K, K), TypeError, "a sparsity.Csr, but got Tensor: write Csr.from"),
        (lambda: xfn.sparse_attention(CSR, K, K, K), ShapeError, "csr [..., H, M] has M=7, but q has M=5"),
        (lambda: xfn.sparse_attention(CSR, Q, Q, Q), ShapeError, "csr [..., H, N] has N=5, but k has N=7"),
        (lambda: xfn.sparse_attention(Csr.from_mask(HEADS), Q, K, K), ShapeError, "has H=4, but q has H=2"),
        (lambda: xfn.sparse_attention(CSR, Q, K, K, 0.1), KeyRequired, "pass key=random.key(seed)"),
        (lambda: xfn.sparse_attention(CSR, Q, K, K, scale=torch.ones(())), TypeError, "write sparse_attention(csr, q"),
        (lambda: xfn.sddmm(CSR, Q, K[:, :0]), ShapeError, "q has H=2 heads, which G=0 key heads cannot share evenly"),
        (lambda: xfn.sddmm(CSR, Q, K.double()), TypeError, "q is torch.float32, but k is torch.float64"),
        (lambda: xfn.spmm(CSR, torch.zeros(2, 3), K), ShapeError, "csr [..., H, Z] has Z="),
        (lambda: xfn.sparse_softmax(CSR, torch.zeros(2, 3)), ShapeError, "but values has Z=3"),
        (lambda: xfn.sparse_softmax(CSR, [1.0]), TypeError, "values is a list, but must be a torch.Tensor"),
    ],
)  # fmt: skip
def test_errors_say_what_to_write(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)):
        call()
