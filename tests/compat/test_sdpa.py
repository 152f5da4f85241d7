"""torch's attention under its own name equals torch's, and the scope reaches every caller of it."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.nn.functional import scaled_dot_product_attention as torchs

from xfn.compat.sdpa import scaled_dot_product_attention, sdpa

M, N, H, K, V = 5, 7, 4, 8, 6
HIDES = torch.rand(M, N, generator=torch.Generator().manual_seed(0)) < 0.6
HIDES[1] = False
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
FULL: Shapes = ((2, H, M, K), (2, H, N, K), (2, H, N, V))


def of(heads: int, batch: tuple[int, ...] = (2,)) -> Shapes:
    return (*batch, H, M, K), (*batch, heads, N, K), (*batch, heads, N, V)


CASES: dict[str, tuple[Shapes, dict[str, Any]]] = {
    "plain": (FULL, {}),
    "causal": (FULL, {"is_causal": True}),
    "scaled": (FULL, {"scale": 0.3}),
    "scaled by nothing": (FULL, {"scale": 0.0}),
    "mask": (FULL, {"attn_mask": HIDES}),
    "mask of examples": (FULL, {"attn_mask": torch.stack([HIDES, HIDES.flip(0)])[:, None]}),
    "mask of keys": (FULL, {"attn_mask": HIDES[:1]}),
    "added": (FULL, {"attn_mask": torch.linspace(-1, 1, H * M * N).view(H, M, N)}),
    "added infinities": (FULL, {"attn_mask": torch.zeros(M, N).masked_fill(~HIDES, -torch.inf)}),
    "one head": (of(1), {}),
    "one query head": (((2, 1, M, K), *FULL[1:]), {}),
    "one query head, one of values": (((2, 1, M, K), FULL[1], (2, 1, N, V)), {}),
    "groups": (of(2), {"enable_gqa": True}),
    "groups, causal": (of(2), {"enable_gqa": True, "is_causal": True}),
    "groups that differ": ((*of(2)[:2], (2, 1, N, V)), {"enable_gqa": True}),
    "one example for many": (((1, *FULL[0][1:]), *FULL[1:]), {}),
    "an example": (of(H, ()), {"is_causal": True}),
    "example and batch": ((FULL[0][1:], *FULL[1:]), {}),
    "matrices": (((M, K), (N, K), (N, V)), {"attn_mask": HIDES}),
    "more batches": (of(H, (2, 3)), {"attn_mask": HIDES}),
    "upper left": (FULL, {"attn_mask": causal_upper_left(M, N)}),
    "lower right": (FULL, {"attn_mask": causal_lower_right(M, N)}),
    "no queries": (((2, H, 0, K), *FULL[1:]), {}),
    "no keys": ((FULL[0], (2, H, 0, K), (2, H, 0, V)), {}),
    "all dropped": (FULL, {"dropout_p": 1.0}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_it_is_torch_s(case: str, dtype: torch.dtype) -> None:
    """Value and gradients; in half precision no farther from the truth than twice torch's own distance."""
    shapes, options = CASES[case]
    added = options.get("attn_mask")
    floating = type(added) is Tensor and added.is_floating_point()
    if added is not None and floating:
        options = options | {"attn_mask": added.to(dtype).requires_grad_()}
    x = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    leaves = [*x, options["attn_mask"]] if floating else x

    def both(f: Callable[..., Tensor], *x: Tensor, **options: Any) -> list[Tensor]:
        y = f(*x, **options)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves if x[0].dtype == dtype else x)]

    got, want = both(scaled_dot_product_attention, *x, **options), both(torchs, *x, **options)
    if dtype.itemsize == 2:
        wide = {k: v.detach().double() if floating and k == "attn_mask" else v for k, v in options.items()}
        exact = both(torchs, *(t.detach().double().requires_grad_() for t in x), **wide)
        for a, b, c in zip(got, want, exact, strict=False):
            slack = 2 * torch.finfo(dtype).eps * c.abs().max() if c.numel() else 0
            assert (a - c).abs().max() <= 2 * (b - c).abs().max() + slack if c.numel() else a.shape == c.shape
        return
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)


def test_it_is_torch_s_under_autocast() -> None:
    x = [torch.randn(shape) for shape in FULL]
    x[2] = x[2].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got, want = scaled_dot_product_attention(*x), torchs(*x)
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=0, atol=torch.finfo(torch.bfloat16).eps * float(want.abs().max()))


WRONG: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], dict[str, Any]], str]] = {
    "mask and causal": (lambda q, k, v: {"attn_mask": HIDES, "is_causal": True}, "is_causal"),
    "integers as a mask": (lambda q, k, v: {"attn_mask": HIDES.long()}, "int64"),
    "a wider mask": (lambda q, k, v: {"attn_mask": HIDES.double()}, "float64"),
    "a mask of another shape": (lambda q, k, v: {"attn_mask": HIDES[:, :-1]}, "N"),
    "heads without groups": (lambda q, k, v: {"key": k[:, :2], "value": v[:, :2]}, "enable_gqa"),
    "groups that do not divide": (lambda q, k, v: {"key": k[:, :3], "value": v[:, :3], "enable_gqa": True}, "divide"),
    "dtypes": (lambda q, k, v: {"key": k.double()}, "float64"),
    "features": (lambda q, k, v: {"key": k[..., 1:]}, "K"),
    "keys": (lambda q, k, v: {"value": v[:, :, 1:]}, "N"),
    "vectors": (lambda q, k, v: {"query": q[0, 0, 0]}, "matrices"),
    "no probability": (lambda q, k, v: {"dropout_p": 1.5}, "1.5"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_torch_s_error(case: str) -> None:
    change, says = WRONG[case]
    x = dict(zip(("query", "key", "value"), (torch.randn(shape) for shape in FULL), strict=True))
    wrong = x | change(*x.values())
    with pytest.raises(RuntimeError):
        torchs(**wrong)
    with pytest.raises(RuntimeError, match=says):
        scaled_dot_product_attention(**wrong)


def test_what_is_no_dense_tensor_is_refused() -> None:
    q, k, v = (torch.randn(shape) for shape in FULL)
    with pytest.raises(TypeError, match="list"):
        scaled_dot_product_attention([1.0], k, v)
    with pytest.raises(TypeError, match="gradient would be lost"):
        scaled_dot_product_attention(q, k, v, scale=torch.tensor(0.5))
    nested = torch.nested.nested_tensor([q[0], q[1]], layout=torch.jagged)
    with pytest.raises(RuntimeError, match="nested"):
        scaled_dot_product_attention(nested, nested, nested)


def test_dropout_is_drawn_from_torch_s_generator() -> None:
    x = torch.randn(3, 2, H, M, K)
    drop = partial(scaled_dot_product_attention, dropout_p=0.5)
    torch.manual_seed(1)
    first, second = drop(*x), drop(*x)
    torch.manual_seed(1)
    assert torch.equal(drop(*x), first)
    assert not torch.equal(first, second)
    many = torch.stack([drop(*x) for _ in range(400)]).mean(0)
    torch.testing.assert_close(many, torchs(*x), rtol=0, atol=0.35)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(drop)(*x)
    twins = x[:, :1].expand(-1, 2, -1, -1, -1)
    apart = vmap(drop, randomness="different")(*twins)
    assert not torch.equal(*apart)
    assert torch.equal(*vmap(drop, randomness="same")(*twins))


# The scope.


class ByName(nn.Module):
    """Attention by the name under which its module imported it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:-1], 3, 4, 4).transpose(-4, -2).unbind(-3)
        return torchs(q, k, v, is_causal=True).flatten(-2)


class ByPath(ByName):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:-1], 3, 4, 4).transpose(-4, -2).unbind(-3)
        return F.scaled_dot_product_attention(q, k, v, HIDES[:, :M]).flatten(-2)


class MultiHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(M)
        return self.inner(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0]  # type: ignore[no-any-return]


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(16, 4, 32, 0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x.flip(-2))  # type: ignore[no-any-return]


class Padded(nn.Module):
    """In evaluation, outside a scope, torch packs what is padded."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True), 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = (torch.arange(M) > 2).expand(len(x), -1)
        return self.inner(x, src_key_padding_mask=hidden)[:, :3]  # type: ignore[no-any-return]


def encoder() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True, norm_first=True)


CALLERS: dict[str, Callable[[], nn.Module]] = {
    "by name": ByName,
    "by path": ByPath,
    "MultiheadAttention": MultiHead,
    "TransformerEncoderLayer": encoder,
    "TransformerEncoder": lambda: nn.TransformerEncoder(encoder(), 2, enable_nested_tensor=False),
    "TransformerEncoder, padded": Padded,
    "TransformerDecoderLayer": Decoder,
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("caller", CALLERS)
def test_a_model_gains_every_transform(caller: str, training: bool) -> None:
    """Held against torch's plain attention, and what torch's own cannot do fails outside."""
    model = CALLERS[caller]().double().train(training)
    x, t = torch.randn(2, 3, M, 16, dtype=torch.float64)
    params = dict(model.named_parameters())
    loss = lambda params, x: functional_call(model, params, (x,)).pow(3).sum()
    gains: dict[str, Callable[[], Any]] = {
        "value": lambda: model(x),
        "jvp": lambda: jvp(model, (x,), (t,))[1],
        "hvp": lambda: grad(lambda x: (grad(loss, 1)(params, x) * t).sum())(x),
        "vmap(grad)": lambda: vmap(grad(loss), (None, 0))(params, x[:, None]),
    }
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with sdpa_kernel(SDPBackend.MATH):
        want = {name: gain() for name, gain in gains.items()}
    torch.backends.mha.set_fastpath_enabled(fast)
    with sdpa():
        for name, gain in gains.items():
            torch.testing.assert_close(gain(), want[name], msg=partial("{}: {}".format, name))
    with pytest.raises((RuntimeError, NotImplementedError)):
        gains["jvp"]()
    with pytest.raises((RuntimeError, NotImplementedError)):
        gains["hvp"]()


def at_home() -> bool:
    return F.scaled_dot_product_attention is torchs and torch.backends.mha.get_fastpath_enabled()


def test_scopes_nest_and_end() -> None:
    assert at_home()
    with sdpa():
        with sdpa():
            assert F.scaled_dot_product_attention is scaled_dot_product_attention
        assert F.scaled_dot_product_attention is scaled_dot_product_attention
        assert not torch.backends.mha.get_fastpath_enabled()
    assert at_home()
    with pytest.raises(ZeroDivisionError), sdpa():
        raise ZeroDivisionError
    assert at_home()
    torch.backends.mha.set_fastpath_enabled(False)
    with sdpa():
        pass
    assert not torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(True)


def test_the_last_of_several_threads_restores() -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with sdpa():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with sdpa():
        thread.start()
        assert inside.wait(60)
    assert F.scaled_dot_product_attention is scaled_dot_product_attention
    leave.set()
    thread.join()
    assert at_home()


@pytest.mark.parametrize("caller", ["by name", "by path", "TransformerEncoderLayer"])
def test_a_compiled_model_is_reached(caller: str) -> None:
    """Value, per-example gradients and tangents, each in one graph."""
    model = CALLERS[caller]().double()
    x = torch.randn(3, M, 16, dtype=torch.float64)
    params = dict(model.named_parameters())
    loss = lambda params, x: functional_call(model, params, (x,)).square().sum()
    programs: dict[str, Callable[[Tensor], Any]] = {
        "value": lambda x: model(x),
        "vmap(grad)": lambda x: vmap(grad(loss), (None, 0))(params, x[:, None]),
    }
    if caller != "TransformerEncoderLayer":  # torch's compiler does not know a layer norm's tangents
        programs["jvp"] = lambda x: jvp(model, (x,), (x,))[1]
    for name, program in programs.items():
        with sdpa():
            made = torch.compile(program, backend="eager", fullgraph=True)
            torch.testing.assert_close(made(x), program(x), msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("call", [torchs, lambda *x: F.scaled_dot_product_attention(*x)], ids=["by name", "by path"])
@pytest.mark.parametrize("first", [True, False], ids=["inside first", "outside first"])
def test_a_compiled_function_follows_the_scope(call: Callable[..., Tensor], first: bool) -> None:
    """Compiled inside or outside, it is compiled anew on the other side, and found again on its own."""
    graphs: list[bool] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(any(node.target is torchs for node in graph.graph.nodes))
        return graph

    x = torch.randn(3, 2, H, M, K)
    made = torch.compile(lambda *x: call(*x), backend=backend, fullgraph=True)
    for inside in (first, not first, first):
        if inside:
            with sdpa():
                made(*x)
        else:
            made(*x)
    assert graphs == [not first, first]
