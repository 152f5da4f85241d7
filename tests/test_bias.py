"""Every bias against its definition, one coefficient at a time, and the rules by which biases combine."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as tree

import xfn
from xfn import ShapeError, bias
from xfn._core import terms
from xfn.bias import Bias

M, N, H = 6, 8, 2
Sees = Callable[[int, int], bool]


def segment(lengths: list[int], i: int) -> tuple[int, int]:
    """The segment of position i, and the place in it; −1 behind the last."""
    start = 0
    for s, length in enumerate(lengths):
        if i < start + length:
            return s, i - start
        start += length
    return -1, 0


def within(q: list[int], k: list[int], rule: Callable[[int, int, int], bool], padding: int | None = None) -> Sees:
    """Same segment, and a rule of the places in it and of how many more keys than queries it has."""

    def sees(m: int, n: int) -> bool:
        s, i = segment(q, m)
        t, j = segment(k, n) if padding is None else (n // padding, n % padding)
        return s == t and s >= 0 and j < k[t] and rule(i, j, k[t] - q[t])

    return sees


CASES: dict[str, tuple[Bias, Sees]] = {
    "nothing": (Bias(()), lambda m, n: True),
    "causal": (bias.causal(), lambda m, n: n <= m),
    "bottom-right": (bias.causal("bottom-right"), lambda m, n: n - N <= m - M),
    "local": (bias.local(2, 1), lambda m, n: m - 2 <= n <= m + 1),
    "local, open": (bias.local(None, 1), lambda m, n: n <= m + 1),
    "local, bottom-right": (bias.local(1, 0, "bottom-right"), lambda m, n: m + N - M - 1 <= n <= m + N - M),
    "both corners": (bias.causal("bottom-right").local(1, 2), lambda m, n: m - 1 <= n <= m + 2),
    "far": (bias.local(10**6, 10**6), lambda m, n: True),
    "farther than integers": (bias.local(2**63 - 1, 2**99) & bias.span(-(2**64), 2**63), lambda m, n: True),
    "farther, in segments": (bias.segments([6], [8]).local(0, 2**63 - 1, "bottom-right"), lambda m, n: n >= m + N - M),
    "segments": (bias.segments([2, 0, 4], [5, 1, 2]), within([2, 0, 4], [5, 1, 2], lambda i, j, s: True)),
    "segments, short": (bias.segments(torch.tensor([2, 2]), [3, 5]), within([2, 2], [3, 5], lambda i, j, s: True)),
    "segments, causal": (bias.segments([3, 3], [4, 4]).causal(), within([3, 3], [4, 4], lambda i, j, s: j <= i)),
    "segments, bottom-right": (
        bias.segments([3, 3], [2, 6]).causal("bottom-right"),
        within([3, 3], [2, 6], lambda i, j, s: j <= i + s),
    ),
    "segments, local": (
        bias.segments([3, 3], [4, 4]).local(1, 0, "bottom-right"),
        within([3, 3], [4, 4], lambda i, j, s: i + s - 1 <= j <= i + s),
    ),
    "segments and causal": (bias.segments([3, 3], [4, 4]) & bias.causal(), lambda m, n: m // 3 == n // 4 and n <= m),
    "padded": (bias.padded([2, 4], 4, [3, 1]), within([2, 4], [3, 1], lambda i, j, s: True, padding=4)),
    "padded, causal": (
        bias.padded([1, 5], 4, [4, 2]).causal("bottom-right"),
        within([1, 5], [4, 2], lambda i, j, s: j <= i + s, padding=4),
    ),
    "span": (bias.span(torch.tensor([0, 1, 2, 3, 9, -4]), torch.tensor([1, 1, 8, 99, 12, 0])), lambda m, n: {
        0: n < 1, 2: n >= 2, 3: n >= 3}.get(m, False)),
    "mask": (bias.dense(torch.arange(M)[:, None] % 3 != torch.arange(N) % 2), lambda m, n: m % 3 != n % 2),
    "masks": (
        bias.dense(torch.arange(N) > 2) & bias.dense(torch.arange(M)[:, None] > 1) & bias.local(4, 4),
        lambda m, n: n > 2 and m > 1 and abs(m - n) <= 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("made", "sees"), CASES.values(), ids=CASES)
def test_hides_what_its_definition_hides(made: Bias, sees: Sees) -> None:
    want = torch.tensor([[0.0 if sees(m, n) else -torch.inf for n in range(N)] for m in range(M)])
    assert torch.equal(made.materialize(M, N), want.expand(1, M, N))
    q, k, v = torch.randn(M, H, 4), torch.randn(N, H, 4), torch.randn(N, H, 4)
    torch.testing.assert_close(xfn.attention(q, k, v, made), xfn.attention(q, k, v, want > -1))


def test_values_are_added() -> None:
    slopes, a, b = torch.tensor([0.5, 2.0]), torch.randn(H, M, N), torch.randn(N)
    distance = (torch.arange(M)[:, None] - torch.arange(N)).abs()
    made = bias.alibi(slopes) + bias.dense(a) + bias.dense(b) + bias.alibi(slopes)
    torch.testing.assert_close(made.materialize(M, N), a + b - 2 * slopes[:, None, None] * distance)
    logits = torch.randn(3, H, M, N)
    torch.testing.assert_close(made.added_to(logits), logits + made.materialize(M, N))
    hidden = (made & bias.dense(b > 0)).materialize(M, N)
    assert torch.equal(hidden == -torch.inf, (b <= 0).expand(H, M, N))


def test_a_bias_is_a_tree_of_its_tensors() -> None:
    made = bias.segments([2, 4], [4, 4]).causal() + bias.dense(torch.randn(N)) + bias.alibi(torch.ones(H))
    leaves, spec = tree.tree_flatten(made)
    assert all(isinstance(leaf, Tensor) for leaf in leaves)
    again = tree.tree_unflatten(leaves, spec)
    assert torch.equal(again.materialize(M, N), made.materialize(M, N))
    assert tree.tree_flatten(tree.tree_map(lambda t: t.double(), bias.causal()))[0] == []
    assert isinstance(tree.tree_unflatten([0] * len(leaves), spec), Bias)
    paths = [tree.keystr(path) for path, _ in tree.tree_flatten_with_path(made)[0]]
    assert paths == [".terms[1].tensor", ".terms[2].slopes"]  # lengths in a list are structure
    data = bias.segments(torch.tensor([2, 4])) & bias.span(0, torch.tensor(3))
    paths = [tree.keystr(path) for path, _ in tree.tree_flatten_with_path(data)[0]]
    assert paths == [".terms[0].queries.tensor", ".terms[0].keys.tensor", ".terms[1].hi.tensor"]


def test_numbers_are_shared_and_tensors_are_mapped() -> None:
    q, lengths, b = torch.randn(2, M, H, 4), torch.tensor([[1], [4]]), torch.randn(2, H, M, M)
    for made in (
        bias.segments([2, 4]) + bias.dense(b),
        bias.padded([2, 4], 3, [1, 3]) & bias.span(0, lengths),
        bias.segments(torch.tensor([[2, 4], [3, 3]])).causal(),
    ):
        torch.testing.assert_close(func.vmap(xfn.attention)(q, q, q, made), xfn.attention(q, q, q, made))
    slopes = func.grad(lambda made: xfn.attention(q, q, q, made).square().sum())(bias.segments([2, 4]) + bias.dense(b))
    assert slopes.terms[1].tensor.shape == b.shape


def test_a_bias_goes_through_grad_and_compile() -> None:
    q, b = torch.randn(M, H, 4), torch.randn(H, M, M)
    made = bias.causal() + bias.dense(b)
    f = lambda made: xfn.attention(q, q, q, made).square().sum()
    slope = func.grad(f)(made)
    want = func.grad(
        lambda b: xfn.attention(q, q, q, b.masked_fill(torch.ones(M, M).triu(1) > 0, -torch.inf)).square().sum()
    )(b)
    torch.testing.assert_close(slope.terms[1].tensor, want)
    torch.testing.assert_close(torch.compile(f, fullgraph=True)(made), f(made))


@pytest.mark.parametrize(
    "within",
    [torch.inference_mode, FakeTensorMode, lambda: torch.device("meta"), lambda: torch.autocast("cpu", torch.bfloat16)],
)
@pytest.mark.parametrize("transform", [lambda f: f, func.vmap, func.grad, lambda f: torch.compile(f, backend="eager")])
def test_what_is_kept_of_a_call_serves_every_other(within: Any, transform: Any) -> None:
    """Bounds that were made within a mode or a transform would be tensors of its own."""
    terms._kept.cache_clear()
    attend = lambda q, backend=None: xfn.attention(q, q, q, bias.local(2, 0), backend=backend).square().sum()
    x = torch.randn(3, 5, 2, 4)
    with within():
        transform(attend)(torch.zeros(3, 5, 2, 4))
    for _ in range(2):
        torch.testing.assert_close(func.grad(attend)(x), func.grad(lambda x: attend(x, "reference"))(x))
        q = x.clone().requires_grad_()
        torch.testing.assert_close(*(torch.autograd.grad(attend(q, backend), q) for backend in (None, "reference")))
    kept = terms._kept(((2, 0, "top-left"),), 5, 5)
    assert terms._kept.cache_info().hits > 1
    torch.testing.assert_close([kept.lo, kept.hi], [torch.tensor([0, 0, 0, 1, 2]), torch.arange(1, 6)])


def test_packing() -> None:
    documents = [torch.randn(n, H, 4) for n in (3, 1, 6)]
    packed, apart = bias.pack(documents)
    mixed = apart.split(xfn.attention(packed, packed, packed, apart.causal()))
    for one, alone in zip(mixed, documents, strict=True):
        torch.testing.assert_close(one, xfn.attention(alone, alone, alone, bias.causal()))
    rows, apart = bias.pack([torch.randn(2, n, 5) for n in (3, 4)], dim=-2)
    assert [r.shape for r in apart.split(rows, dim=-2)] == [(2, 3, 5), (2, 4, 5)]


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: bias.causal("top"), ValueError, "corner='top' is neither of ['top-left', 'bottom-right']"),
        (lambda: bias.local(-1, 0), ValueError, "left=-1 reaches nowhere"),
        (lambda: bias.dense(torch.ones(2).int()), TypeError, "write mask.bool() for a mask, bias.float() to add it"),
        (lambda: bias.alibi(torch.ones(2).int()), TypeError, "floating slopes [..., H], but got torch.int32 [2]"),
        (lambda: bias.segments([]), ValueError, "one or more integers"),
        (lambda: bias.segments([2, -1]), ValueError, "but got [2, -1]"),
        (lambda: bias.segments(torch.ones(2)), TypeError, "lengths are integers [..., S], but got torch.float32 [2]"),
        (lambda: bias.segments([1, 2], [3]), ShapeError, "there are 2 lengths, but 1 kv_lengths"),
        (lambda: bias.padded([1, 1], 2, [3, 1]), ValueError, "kv_lengths=[3, 1] exceed kv_padding=2"),
        (lambda: bias.span(0.5, 1), TypeError, "span takes integers, but lo is 0.5"),
        (lambda: bias.span(torch.ones(2), 1), TypeError, "span takes integers, but lo is torch.float32"),
        (lambda: bias.span(0, torch.tensor([1, 2])).resolve(3, 4), ShapeError, "bounds for 2 queries, but q has M=3"),
        (lambda: bias.local(1.5, 0), TypeError, "left is an integer, but got 1.5"),
        (lambda: bias.local("a", 0), TypeError, "left is an integer, but got 'a'"),
        (lambda: bias.segments(5), TypeError, "lengths are integers, in a list or a tensor, but got 5"),
        (lambda: bias.segments([1.0]), TypeError, "but got [1.0]"),  # type: ignore[list-item]
        (lambda: bias.segments([True]), TypeError, "but got [True]"),
        (lambda: bias.dense([0.5]), TypeError, "a dense bias is a list, but must be a torch.Tensor"),
        (lambda: bias.alibi([0.5]), TypeError, "slopes is a list, but must be a torch.Tensor"),
        (
            lambda: (bias.dense(torch.ones(2, 3)) + bias.dense(torch.ones(4))).resolve(2, 3),
            ShapeError,
            "two terms of a bias do not broadcast: [1, 2, 3] and [1, 1, 4]",
        ),
        (lambda: bias.pack([None]), TypeError, "tensors[0] is a NoneType"),  # type: ignore[list-item]
        (lambda: bias.pack([torch.ones(2)]), ShapeError, "pack joins tensors of one rank that have dim -3"),
        (lambda: bias.pack([torch.ones(2, 1, 1), torch.ones(2, 1, 2)]), ShapeError, "differ in dim -3 alone"),
        (
            lambda: (bias.segments([3]) & bias.segments([3])).split(torch.ones(3, 1, 1)),
            ValueError,
            "this bias has segments 2 times",
        ),
        (lambda: bias.pack([]), ValueError, "pack needs at least one tensor"),
        (lambda: bias.causal().split(torch.ones(3, 1, 1)), ValueError, "split needs one bias.segments"),
        (lambda: bias.segments([1, 2]).split(torch.ones(4, 1, 1)), ShapeError, "hold 3 queries, but dim -3 has 4"),
        (lambda: bias.causal() + torch.ones(3), TypeError, "write bias.dense(tensor)"),  # type: ignore[operator]
        (lambda: torch.ones(3) + bias.causal(), TypeError, "write bias.dense(tensor)"),  # type: ignore[operator]
        (lambda: bias.segments([1, 2]).resolve(4, 3), ShapeError, "hold 3 queries [1, 2], but q has M=4"),
        (lambda: bias.segments([1, 2]).resolve(3, 4), ShapeError, "hold 3 keys, but k has N=4"),
        (lambda: bias.padded([1, 2], 4, [1, 2]).resolve(3, 7), ShapeError, "hold 8 keys, but k has N=7"),
    ],
)
def test_errors_say_what_to_write(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)):
        call()
