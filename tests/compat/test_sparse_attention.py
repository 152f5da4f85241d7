"""The Sparse Transformers' primitives against dense attention under masks that are written out."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func

from benchmarks.measure import peak_bytes
from tests.cases import agree
from xfn import ShapeError
from xfn.compat.sparse_attention import attention_impl, blocksparse_attention_impl, get_attn_mask, recomputable

Sees = Callable[[int, int, int], bool]
Arguments = dict[str, Any]


def sees(arguments: Arguments) -> Sees:
    """Whether query m sees key n in head h, from the definition of each mode."""
    mode, ctx = arguments["attn_mode"], arguments.get("local_attn_ctx", 0)
    if mode == "all":
        return lambda h, m, n: n <= m
    if mode == "local":
        return lambda h, m, n: m - ctx < n <= m
    if mode == "strided":
        return lambda h, m, n: n <= m and (m - n) % ctx == 0
    block, verts, size = arguments["blocksize"], arguments["num_verts"], arguments["vertsize"]
    stride = ctx // block
    groups = [list(range(stride))[::-1][i : i + size] for i in range(0, stride, size)]

    def fixed(h: int, m: int, n: int) -> bool:
        return n <= m and (m // ctx == n // ctx or n // block % stride in groups[h % verts])

    return fixed


def mask(arguments: Arguments, time: int) -> Tensor:
    rule, places = sees(arguments), range(time)
    return torch.tensor([[[rule(h, m, n) for n in places] for m in places] for h in range(arguments["heads"])])


def dense(arguments: Arguments, time: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention with every weight in sight, as the primitives' own reference has it."""
    kept, heads = mask(arguments, time).double(), arguments["heads"]

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.reshape(*x.shape[:-1], heads, -1).movedim(-2, -3) for x in (q, k, v))
        w = q @ k.mT / math.sqrt(q.shape[-1])
        w = (w * kept - 1e9 * (1 - kept)).softmax(-1)
        return (w @ v).movedim(-3, -2).flatten(-2)

    return call


DENSE: list[tuple[int, Arguments]] = [
    (24, {"heads": 4, "attn_mode": "all"}),
    (24, {"heads": 4, "attn_mode": "local", "local_attn_ctx": 7}),
    (24, {"heads": 1, "attn_mode": "local", "local_attn_ctx": 1}),
    (24, {"heads": 2, "attn_mode": "local", "local_attn_ctx": 99}),
    (24, {"heads": 4, "attn_mode": "strided", "local_attn_ctx": 6}),
    (23, {"heads": 2, "attn_mode": "strided", "local_attn_ctx": 5}),
    (3, {"heads": 2, "attn_mode": "strided", "local_attn_ctx": 10**6}),
]
BLOCKED: list[tuple[int, Arguments]] = [
    (64, {"heads": 4, "attn_mode": "all", "blocksize": 8}),
    (60, {"heads": 4, "attn_mode": "all", "blocksize": 32}),
    (64, {"heads": 4, "attn_mode": "local", "local_attn_ctx": 16, "blocksize": 8}),
    (64, {"heads": 2, "attn_mode": "strided", "local_attn_ctx": 4, "blocksize": 16}),
    *(
        (time, {"heads": 4, "attn_mode": "fixed", "local_attn_ctx": 32, "blocksize": 8} | rest)
        for time in (96, 100)
        for rest in (
            {"num_verts": 1, "vertsize": 1},
            {"num_verts": 1, "vertsize": 2},
            {"num_verts": 2, "vertsize": 2},
            {"num_verts": 4, "vertsize": 1},
            {"num_verts": 1, "vertsize": 4},
        )
    ),
]
CASES = [(attention_impl, *case) for case in DENSE] + [(blocksparse_attention_impl, *case) for case in BLOCKED]
every_case = pytest.mark.parametrize(("f", "time", "arguments"), CASES)


def drawn(time: int, batch: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(torch.randn(*batch, time, 16, dtype=torch.float64).to(dtype) for _ in range(3))


@every_case
def test_value_and_gradients_are_those_of_dense_attention(f: Any, time: int, arguments: Arguments) -> None:
    want, x = dense(arguments, time), tuple(t.requires_grad_() for t in drawn(time))
    for recompute in (False, True):
        got = f(*x, **arguments, recompute=recompute)
        agree(got, want(*x))
        slope = torch.randn_like(got)
        agree(torch.autograd.grad(got, x, slope), torch.autograd.grad(want(*x), x, slope))


@every_case
def test_transforms_are_those_of_dense_attention(f: Any, time: int, arguments: Arguments) -> None:
    want, x, t = dense(arguments, time), drawn(time), drawn(time)

    def loss(g: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *x: g(*x).sin().sum()

    def ours(*x: Tensor) -> Tensor:
        return f(*x, **arguments, recompute=True)  # type: ignore[no-any-return]

    agree(func.vmap(ours)(*x), want(*x))
    agree(func.jvp(ours, x, t), func.jvp(want, x, t))
    each, curved = (
        [how(func.grad(loss(g), (0, 1, 2))) for g in (ours, want)]
        for how in (lambda slope: func.vmap(slope)(*x), lambda slope: func.jvp(slope, x, t))
    )
    agree(*each)
    agree(*curved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every_case
def test_low_precision(f: Any, time: int, arguments: Arguments, dtype: torch.dtype) -> None:
    x = drawn(time, dtype=dtype)
    got = f(*x, **arguments)
    assert got.dtype == dtype
    agree(got, dense(arguments, time)(*(t.double() for t in x)), 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(("time", "arguments"), DENSE)
def test_masks_are_those_of_the_definition(time: int, arguments: Arguments) -> None:
    options = {name: value for name, value in arguments.items() if name != "heads"}
    got = get_attn_mask(time, **options)
    assert got.shape == (1, 1, time, time)
    assert torch.equal(got[0, 0] == 1, mask(arguments, time)[0])


def test_every_batch_is_its_examples() -> None:
    x = drawn(32, batch=(3, 2))
    options: Arguments = {"heads": 4, "attn_mode": "fixed", "local_attn_ctx": 16, "blocksize": 8}
    whole = blocksparse_attention_impl(*x, **options, num_verts=2, vertsize=1)
    one = blocksparse_attention_impl(*(t[1, 0] for t in x), **options, num_verts=2, vertsize=1)
    assert whole.shape == (3, 2, 32, 16)
    agree(whole[1, 0], one)


def test_no_time_and_no_examples() -> None:
    for f, _, arguments in CASES:
        for shape in ((2, 0, 16), (0, 64, 16)):
            x = torch.randn(shape, dtype=torch.float64)
            assert f(x, x, x, **arguments).shape == shape


def test_the_program_of_the_page() -> None:
    """Sparse and dense primitives, side by side, as the Sparse Transformers' page has them."""
    q, k, v = torch.randn(3, 2, 1024, 64)
    pairs = [
        [f(q, k, v, heads=4, attn_mode="all", recompute=True) for f in (attention_impl, blocksparse_attention_impl)],
        *(
            [
                f(q, k, v, heads=4, attn_mode=mode, local_attn_ctx=32, recompute=True)
                for f in (attention_impl, blocksparse_attention_impl)
            ]
            for mode in ("local", "strided")
        ),
    ]
    for full_tf, full_bs in pairs:
        agree(full_bs, full_tf, 1e-6)
    options: Arguments = {"heads": 4, "attn_mode": "fixed", "local_attn_ctx": 128, "num_verts": 4, "vertsize": 1}
    fixed = blocksparse_attention_impl(q, k, v, **options, recompute=True)
    want = dense(options | {"blocksize": 32}, 1024)(*(x.double() for x in (q, k, v)))
    agree(fixed, want, 1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"attn_mode": "all"},
        {"attn_mode": "local", "local_attn_ctx": 128},
        {"attn_mode": "strided", "local_attn_ctx": 64},
    ],
    ids=str,
)
def test_memory_is_as_long_as_the_inputs(options: Arguments) -> None:
    time = 4096
    x = tuple(torch.randn(time, 16, requires_grad=True) for _ in range(3))
    peak = peak_bytes(lambda: torch.autograd.grad(attention_impl(*x, heads=1, **options).sum(), x))
    assert peak < time**2


def test_a_function_of_ones_own_is_recomputable() -> None:
    @recomputable("mixed")
    def mixed(x: Tensor, y: Tensor, power: int = 1) -> Tensor:
        return (x * y) ** power

    x, y = torch.randn(2, 5, dtype=torch.float64)
    assert mixed.__name__ == "mixed"
    for recompute in (False, True):
        agree(mixed(x, y, power=3, recompute=recompute), (x * y) ** 3)
        slope = func.grad(lambda x: mixed(x, y, power=3, recompute=recompute).sum())
        agree(slope(x), 3 * x**2 * y**3)
        agree(func.vmap(func.grad(lambda x, y: mixed(x, y, power=3, recompute=recompute)))(x, y), 3 * x**2 * y**3)


FIXED: Arguments = {"heads": 4, "attn_mode": "fixed", "local_attn_ctx": 64, "num_verts": 1, "vertsize": 1}


@pytest.mark.parametrize(
    ("f", "arguments", "error", "text"),
    [
        (attention_impl, {"heads": 3, "attn_mode": "all"}, ShapeError, "heads=3 do not share dim evenly"),
        (attention_impl, {"heads": 4, "attn_mode": "fixed"}, ValueError, "blocksparse_attention_impl"),
        (attention_impl, {"heads": 4, "attn_mode": "local"}, ValueError, "needs local_attn_ctx"),
        (get_attn_mask, {"attn_mode": "fixed"}, ValueError, "attn_mode='fixed' has no mask"),
        (blocksparse_attention_impl, {"heads": 4, "attn_mode": "none"}, ValueError, "attn_mode='none' is none of"),
        (blocksparse_attention_impl, {"heads": 4, "attn_mode": "all", "blocksize": 12}, ValueError, "blocksize=12"),
        (
            blocksparse_attention_impl,
            {"heads": 4, "attn_mode": "local", "local_attn_ctx": 20},
            ValueError,
            "local_attn_ctx=20 is no multiple of blocksize=32",
        ),
        (
            blocksparse_attention_impl,
            {"heads": 4, "attn_mode": "strided", "local_attn_ctx": 32},
            ValueError,
            "time=128 is no multiple of local_attn_ctx * blocksize = 32 * 32",
        ),
        (blocksparse_attention_impl, FIXED | {"local_attn_ctx": 40}, ValueError, "local_attn_ctx=40 is no multiple"),
        (blocksparse_attention_impl, FIXED | {"num_verts": 3}, ValueError, "num_verts=3 does not divide heads=4"),
        (blocksparse_attention_impl, FIXED | {"num_verts": 4}, ValueError, "num_verts=4 summaries of vertsize=1"),
        (blocksparse_attention_impl, FIXED | {"vertsize": 3}, ValueError, "vertsize=3 blocks are not in a window of 2"),
    ],
)
def test_what_is_refused(f: Any, arguments: Arguments, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        f(*([128] if f is get_attn_mask else drawn(128)), **arguments)
