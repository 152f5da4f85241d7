"""What ``python -m benchmarks.run functions`` times: a transformer's functions, forward and backward, against torch's
own, eager and compiled."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

import xfn
from benchmarks.attention.problem import Settings, both
from benchmarks.contest import Call, Contest, Row, faster
from benchmarks.machine import name
from xfn import random
from xfn.ops.swiglu import gated

WIDTHS, ROWS = (512, 1024, 2048, 4096), 2048
Function = Callable[..., Tensor]

ROWWISE: dict[str, tuple[Function, Function, str]] = {
    "layer_norm": (
        lambda x, w, b: xfn.layer_norm({"weight": w, "bias": b}, x),
        lambda x, w, b: F.layer_norm(x, w.shape, w, b),
        "weight bias",
    ),
    "rms_norm": (lambda x, w: xfn.rms_norm({"weight": w}, x), lambda x, w: F.rms_norm(x, w.shape, w, 1e-6), "weight"),
    "softmax": (xfn.softmax, lambda x: x.softmax(-1), ""),
    "log_softmax": (xfn.log_softmax, lambda x: x.log_softmax(-1), ""),
    "dropout": (lambda x: xfn.dropout(x, 0.1, key=random.key(0)), lambda x: F.dropout(x, 0.1), ""),
    "bias, gelu": (lambda x, b: xfn.dropout(x, 0.0, b, "gelu"), lambda x, b: F.gelu(x + b), "bias"),
    "bias, gelu, dropout": (
        lambda x, b: xfn.dropout(x, 0.1, b, "gelu", key=random.key(0)),
        lambda x, b: F.dropout(F.gelu(x + b), 0.1),
        "bias",
    ),
    "bias, dropout, residual": (
        lambda x, b, r: xfn.dropout(x, 0.1, b, residual=r, key=random.key(0)),
        lambda x, b, r: r + F.dropout(x + b, 0.1),
        "bias x",
    ),
    "silu, product": (lambda x, u: gated(x, u, None, None), lambda x, u: F.silu(x) * u, "x"),
    "rotary": (lambda x: xfn.rotary(heads(x), heads(x[:1]))[0].flatten(1), lambda x: turned(heads(x)).flatten(1), ""),
}
"""Ours, torch's, and what they take beside x: a line, or another x."""


def heads(x: Tensor) -> Tensor:
    """Of 64 features."""
    return x.view(len(x), -1, 64)


def turned(x: Tensor) -> Tensor:
    """As models write it: tables in x's dtype, of as many columns as there are features."""
    theta: Tensor = torch.arange(len(x))[:, None] * 10000.0 ** (torch.arange(32) / -32)
    table = torch.cat([theta, theta], -1).unsqueeze(1)
    a, b = x.chunk(2, -1)
    return x * table.cos().to(x.dtype) + torch.cat([-b, a], -1) * table.sin().to(x.dtype)


def rows(settings: Settings) -> Iterator[Row]:
    widths = WIDTHS[:1] if settings.quick else WIDTHS
    for function, dtype, E in product(ROWWISE, (torch.float32, torch.bfloat16), widths):
        make = partial(rowwise, function, dtype, E)
        yield Row(function, f"{function} {name(dtype)} {ROWS}x{E}", make, dtype, goals=GOALS)
    for p, dtype, E in product((0.0, 0.1), (torch.float32, torch.bfloat16), widths[:3]):
        title = f"fused_mlp {f'dropout {p:g} ' if p else ''}{name(dtype)} 512x{E}"
        flops = 6 * 2 * 512 * E * 4 * E  # of two products, and two for the gradients of each
        yield Row("fused_mlp", title, partial(layers, p, dtype, E), dtype, flops, MLP_GOALS)


GOALS = (faster(1.5, of="torch"), faster(1.0, of="compiled"))
MLP_GOALS = (faster(1.2, of="torch"), faster(1.0, of="compiled"), faster(0.97, of="mlp"))


def rowwise(function: str, dtype: torch.dtype, E: int) -> Contest:
    ours, theirs, rest = ROWWISE[function]
    shapes = [(ROWS, E), *((ROWS, E) if what == "x" else (E,) for what in rest.split())]
    tensors = drawn(shapes, dtype)
    beside = {} if "x" in rest else {"moving": moving(tensors[0])}
    return contest(ours, theirs, tensors, comparable="dropout" not in function, **beside)


def moving(x: Tensor) -> Call:
    """What torch takes to read and write what a value and its gradient must: x for y, x and dy for dx."""
    words, others = (t.view(torch.int32) for t in (x, torch.zeros_like(x)))
    return Call(lambda: (words.clone(), words ^ others))


def layers(p: float, dtype: torch.dtype, E: int) -> Contest:
    key = random.key(0) if p else None

    def ours(f: Function, x: Tensor, *params: Tensor) -> Tensor:
        up, b, down, c = params
        return f({"up": {"weight": up, "bias": b}, "down": {"weight": down, "bias": c}}, x, "gelu", p, key=key)

    def theirs(x: Tensor, up: Tensor, b: Tensor, down: Tensor, c: Tensor) -> Tensor:
        return F.dropout(F.linear(F.dropout(F.gelu(F.linear(x, up, b)), p), down, c), p)

    tensors = drawn([(512, E), (4 * E, E), (4 * E,), (E, 4 * E), (E,)], dtype)
    tensors = [t * E**-0.5 if i else t for i, t in enumerate(tensors)]
    d = direction(tensors)
    mlp = Call(both(partial(ours, xfn.mlp), tensors, d))
    return contest(partial(ours, xfn.fused_mlp), theirs, tensors, comparable=not p, mlp=mlp)


def drawn(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def direction(tensors: list[Tensor]) -> Tensor:
    """What a gradient goes along."""
    return torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1)).to(tensors[0].dtype)


def contest(ours: Function, theirs: Function, tensors: list[Tensor], *, comparable: bool, **beside: Call) -> Contest:
    torch.compiler.reset()  # a function that was compiled too often for other shapes would run uncompiled
    compiled, d = torch.compile(theirs, dynamic=False), direction(tensors)
    peers = {"torch": Call(both(theirs, tensors, d)), "compiled": Call(both(compiled, tensors, d), compiled=True)}
    return Contest(Call(both(ours, tensors, d)), peers, beside, comparable)
