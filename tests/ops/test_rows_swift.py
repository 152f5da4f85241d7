"""The plainest calls of norms, softmaxes, activations and gates are whole in C++: to the bit what Python gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, grad

import xfn
from xfn._core.dispatch import module
from xfn.ops.dropout import DROPOUT
from xfn.ops.layer_norm import LAYER_NORM
from xfn.ops.log_softmax import LOG_SOFTMAX
from xfn.ops.rms_norm import RMS_NORM
from xfn.ops.softmax import SOFTMAX
from xfn.ops.swiglu import SWIGLU, gated

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OPS: dict[str, tuple[Any, Callable[..., Tensor], int]] = {
    "layer_norm": (LAYER_NORM, lambda x, w, b, **how: xfn.layer_norm({"weight": w, "bias": b}, x, **how), 2),
    "layer_norm of a weight": (LAYER_NORM, lambda x, w, **how: xfn.layer_norm({"weight": w}, x, **how), 1),
    "layer_norm of a bias": (LAYER_NORM, lambda x, b, **how: xfn.layer_norm({"bias": b}, x, **how), 1),
    "layer_norm alone": (LAYER_NORM, lambda x, **how: xfn.layer_norm({}, x, **how), 0),
    "rms_norm": (RMS_NORM, lambda x, w, **how: xfn.rms_norm({"weight": w}, x, 1e-3, **how), 1),
    "rms_norm alone": (RMS_NORM, lambda x, **how: xfn.rms_norm({}, x, **how), 0),
    "softmax": (SOFTMAX, xfn.softmax, 0),
    "log_softmax": (LOG_SOFTMAX, xfn.log_softmax, 0),
}
SUMS = pytest.mark.parametrize("op", tuple(OPS))  # of lines that may have the dtype of sums
OPS |= {
    "a bias and gelu": (DROPOUT, lambda x, b, **how: xfn.dropout(x, 0.0, b, "gelu", **how), 1),
    "star_relu": (DROPOUT, lambda x, **how: xfn.dropout(x, 0.0, None, "star_relu", **how), 0),
    "a gate": (SWIGLU, lambda x, backend=None: gated(x, x.sin(), None, None, backend=backend), 0),
    "a gate and biases": (SWIGLU, lambda x, a, b, backend=None: gated(x, x.sin(), a, b, backend=backend), 2),
    "a gate and a bias": (SWIGLU, lambda x, b, backend=None: gated(x, x.sin(), None, b, backend=backend), 1),
}
OP = pytest.mark.parametrize("op", OPS)

try:
    MISSING = LAYER_NORM.swift is None and f"no library: {getattr(module('cpu', 'layer_norm'), 'DETAIL', '')}"
except ImportError as error:
    MISSING = str(error)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"there is nothing to test: {MISSING}")


def operands(op: str, dtype: torch.dtype = torch.float32, batch: tuple[int, ...] = (2, 3)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(*batch, 19), *[(19,)] * OPS[op][2]]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def roads(op: str, x: list[Tensor]) -> tuple[Tensor, Tensor]:
    """By the short road, and by the one that a named backend takes."""
    call = OPS[op][1]
    return call(*x), call(*x, backend="cpu")


def same(got: Any, want: Any) -> None:
    for a, b in zip(got, want, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@OP
@pytest.mark.parametrize("batch", [(5,), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_and_gradient_are_the_same_bits(op: str, dtype: torch.dtype, batch: tuple[int, ...]) -> None:
    x = operands(op, dtype, batch)
    short, long = roads(op, x)
    assert ["Short" in y.grad_fn.name() for y in (short, long)] == [False, True]  # type: ignore[union-attr]
    same([short], [long])
    for dy in (torch.randn_like(short), torch.ones(()).to(dtype).expand(short.shape)):
        same(*(grad(y, x, dy, retain_graph=True) for y in (short, long)))
    for quiet in (torch.no_grad(), torch.inference_mode()):
        with quiet:
            same([OPS[op][1](*x)], [long])


@SUMS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("E", [3, 37, 1024, 1040])  # 1024 float32 are 4096 bytes, where rows are taken by fewer
def test_a_row_s_bits_do_not_depend_on_its_neighbours(op: str, dtype: torch.dtype, E: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, dy = torch.randn(2, 7, E, generator=generator).to(dtype)
    lines = torch.randn(OPS[op][2], E, generator=generator).to(dtype)
    all_at_once, each = (
        [(y.detach(), grad(y, rows, dy[at])[0]) for at in cuts for rows in [x[at].clone().requires_grad_()]
         for y in [OPS[op][1](rows, *lines)]]
        for cuts in ([slice(0, 7)], [slice(i, i + 1) for i in range(7)])
    )  # fmt: skip
    for got, want in zip(all_at_once[0], zip(*each, strict=True), strict=True):
        assert torch.equal(got, torch.cat(want))


@SUMS
def test_sums_lose_no_digits_with_width(op: str) -> None:
    """Of a row of 2¹⁸ nearly equal numbers, where each addition errs the same way."""
    x, dy = torch.full((2, 1, 1 << 18), 0.1)
    x[:, ::2] += 1e-3
    dy[:, ::3] += 0.05
    lines = [torch.ones(1 << 18)] * OPS[op][2]
    found = []
    for dtype in (torch.float32, torch.float64):
        rows = x.to(dtype).requires_grad_()
        y = OPS[op][1](rows, *(t.to(dtype) for t in lines))
        found.append((y.detach(), grad(y, rows, dy.to(dtype))[0]))
    for got, want in zip(*found, strict=True):
        assert (got - want).abs().max() <= 64 * torch.finfo(torch.float32).eps * want.abs().max()


@SUMS
def test_a_view_and_a_line_of_sums_are_taken_as_they_are(op: str) -> None:
    x, *lines = operands(op, torch.bfloat16)
    given = [x.detach().mT.contiguous().mT.requires_grad_(), *(t.detach().float().requires_grad_() for t in lines)]
    short, long = roads(op, given)
    same([short], [long])
    same(*(grad(y.square().sum(), given) for y in (short, long)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softmaxes_of_the_largest_numbers(dtype: torch.dtype) -> None:
    most, inf = torch.finfo(dtype).max, torch.inf
    rows = [[most] * 19, [-most] * 19, [most, *[-most] * 18], [-inf, *[-most] * 18], [-most, *[most] * 18]]
    for f, torch_s in ((xfn.softmax, torch.softmax), (xfn.log_softmax, torch.log_softmax)):
        x = torch.tensor(rows, dtype=dtype, requires_grad=True)
        y, want = f(x), torch_s(x.double(), -1)
        torch.testing.assert_close(y.double().exp(), want.exp(), atol=8 * torch.finfo(dtype).eps, rtol=0)
        assert grad(y.exp().sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("backend", [None, "cpu", "aten", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_overflows_takes_its_gradient_and_what_is_hidden_none(dtype: torch.dtype, backend: str | None) -> None:
    """Where y is −∞, x tells which it is; no cotangent of what is hidden shows, not even an infinite one."""
    most, inf = torch.finfo(dtype).max, torch.inf
    x = torch.tensor([[most, -most, *[0] * 17], [most, -most, -inf, *[0] * 16]], dtype=dtype, requires_grad=True)
    dy = torch.arange(1.0, 20).to(dtype).repeat(2, 1)
    dy[1, 2] = inf
    y = xfn.log_softmax(x, backend=backend)
    want = torch.where(x == -inf, 0, dy)
    want[:, 0] -= want.sum(-1)
    assert (y[:, 1] == -inf).all()
    assert torch.equal(grad(y, x, dy)[0], want)
    band = torch.ones(19, 19).tril(1).triu(-1) == 1
    x = torch.zeros(19, 19, dtype=dtype).fill_diagonal_(most).requires_grad_()
    y = xfn.log_softmax(x, xfn.bias.local(1, 1), backend=backend)
    dy = torch.where(band, 1.0, inf).to(dtype)
    want = torch.where(band, 1.0, 0.0).to(dtype)
    assert torch.equal(grad(y, x, dy)[0], want - torch.diag(want.sum(-1)))


@OP
def test_only_what_is_wanted_is_returned(op: str) -> None:
    for wanted in range(1 + OPS[op][2]):
        x = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(operands(op))]
        same(*(grad(y.square().sum(), x[wanted]) for y in roads(op, x)))


@OP
def test_the_second_order_is_the_family_s(op: str) -> None:
    x = operands(op, torch.float64)
    short, long = roads(op, x)

    def twice(y: Tensor) -> Any:
        first = grad(y.sin().sum(), x, create_graph=True)
        return grad(sum(g.square().sum() for g in first), x, allow_unused=True, materialize_grads=True)

    same(twice(short), twice(long))


@OP
def test_is_grads_batched_is_mapped(op: str) -> None:
    x = operands(op)
    dy = torch.randn(3, 2, 3, 19)
    for a, b in zip(*(grad(y, x, dy, is_grads_batched=True) for y in roads(op, x)), strict=True):
        torch.testing.assert_close(a, b)


def declined() -> dict[str, tuple[Any, ...]]:
    """Calls of layer_norm that hold what only Python knows, or that are to raise there."""
    x, w, b = (t.detach() for t in operands("layer_norm"))
    return {
        "width": (x, w[:4], b, 1e-5),
        "rank": (x, w[None], b, 1e-5),
        "a number": (x.sum(), None, None, 1e-5),
        "nothing": (x[:0], w, b, 1e-5),
        "dtypes": (x, w.double(), b, 1e-5),
        "integers": (x.long(), None, None, 1e-5),
        "not finite": (x, w, b, float("inf")),
        "negated views": (torch.randn(3, 19, dtype=torch.cfloat).conj().imag, w, b, 1e-5),
        "sparse": (x.to_sparse(), w, b, 1e-5),
        "elsewhere": (x.to("meta"), None, None, 1e-5),
    }


def test_what_others_do_between_products_is_declined() -> None:
    x, bias = operands("a bias and gelu")
    assert DROPOUT.swift is not None
    assert SWIGLU.swift is not None
    for given in ((x[0, 0], bias), (x, bias[:4]), (x, bias.double()), (x.bfloat16(), bias), (x[:0], bias)):
        assert DROPOUT.swift(*given, "gelu", 3) is None
        assert SWIGLU.swift(given[0], given[0], given[1], None) is None
    for other in (x[:1], x.double(), x.to_sparse()):
        assert SWIGLU.swift(x, other, None, None) is None


@pytest.mark.parametrize("name", declined())
def test_any_other_call_is_declined(name: str) -> None:
    assert LAYER_NORM.swift is not None
    assert LAYER_NORM.swift(*declined()[name]) is None


@pytest.mark.parametrize("wrong", [5, 0.5, None, "a word"], ids=str)
def test_what_is_no_tensor_gets_our_own_error(wrong: Any) -> None:
    x, w = (t.detach() for t in operands("rms_norm"))
    with pytest.raises(TypeError, match=f"weight is a {type(wrong).__name__}, but must be a torch.Tensor"):
        xfn.layer_norm({"weight": wrong, "bias": w}, x)
    for call in (lambda: xfn.rms_norm({"weight": w}, wrong), lambda: xfn.softmax(wrong)):
        with pytest.raises(TypeError, match=f"x is a {type(wrong).__name__}, but must be a torch.Tensor"):
            call()


@OP
def test_a_call_is_declined_where_something_is_on(op: str) -> None:
    (x, *lines), call = operands(op), OPS[op][1]
    assert "CppFunction" in str(call(x, *lines).grad_fn)
    with torch.autocast("cpu"):
        assert "CppFunction" not in str(call(x, *lines).grad_fn)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), torch.ones_like(x))
        tangent = forward_ad.unpack_dual(call(dual, *lines)).tangent
    assert tangent is not None


@OP
def test_what_is_saved_is_watched(op: str) -> None:
    x = operands(op)
    y = OPS[op][1](*x)
    same(grad(y.sum(), x, retain_graph=True), grad(y.sum(), x))
    with pytest.raises(RuntimeError, match="second time"):
        grad(y.sum(), x)
    y = OPS[op][1](*x)
    with torch.no_grad():
        x[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grad(y.sum(), x)


@pytest.mark.parametrize("op", [op for op in OPS if "norm" in op])
def test_a_norm_keeps_its_operands_and_moments(op: str) -> None:
    """Not its result, which may be overwritten; and a hook may give back what was kept as it likes."""
    x, kept = operands(op), list[Tensor]()
    want = grad(OPS[op][1](*x).sum(), x)
    pack = lambda t: kept.append(t) or t.mT.contiguous().mT if t.dim() > 1 else t  # type: ignore[func-returns-value]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = OPS[op][1](*x)
    assert [t.shape for t in kept] == [(2, 3, 19), (1, 6, 2)]
    with torch.no_grad():
        y.mul_(2)
    same(grad(y.sum(), x), want)
