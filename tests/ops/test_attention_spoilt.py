"""Attention of numbers that are not finite: what is hidden from them never knows."""

from typing import Any

import pytest
import torch
from torch import Tensor, func

import xfn
from xfn import bias

from ..cases import agree
from ..device import gpu
from ..transforms import dot
from .test_attention import BACKENDS, backends, drawn

HIDES_LAST = {
    "causal": bias.causal(),
    "mask": torch.ones(4, 4).tril().bool(),
    "-inf": torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf).double(),
    "span": bias.span(0, torch.arange(1, 5)),
}


@gpu
@backends
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("hides", HIDES_LAST.values(), ids=HIDES_LAST)
def test_a_query_is_spoilt_by_what_it_sees_alone(hides: Any, bad: float, backend: str | None) -> None:
    """Keys 2 and 3 hold something that is not finite; queries 0 and 1 do not see them and do not change."""
    x, t = tuple(drawn(*[(4, 2, 4)] * 3)), tuple(drawn(*[(4, 2, 4)] * 3))
    spoilt = tuple(v.clone() for v in x)
    spoilt[1][2, 0, 1], spoilt[2][3, 1, 2] = bad, bad
    f = lambda *x: xfn.attention_with_lse(*x, hides, backend=backend)
    rows = lambda *x: (f(*x)[0][:2], f(*x)[1][:, :2])
    slope = lambda *x: func.grad(lambda *x: sum(y.sin().sum() for y in f(*x)))(*x)[:2]
    for program in (
        rows,
        lambda *x: func.jvp(rows, x, t),
        lambda *x: func.jvp(lambda *x: func.jvp(rows, x, t)[1], x, t),
        slope,
        lambda *x: func.jvp(slope, x, t),
    ):
        agree(program(*spoilt), program(*x), 1e-14)
    out = f(*spoilt)[0]
    assert not out[2, 0].isfinite().all()
    assert not out[3, 1].isfinite().all()


HIDES_FROM_ALL = {
    "span": bias.span(0, 2),
    "mask": torch.tensor([True, True, False, False]),
    "-inf": torch.tensor([0.0, 1.0, -torch.inf, -torch.inf], dtype=torch.float64),
    "padded": bias.padded([4], 4, [2]),
}


@gpu
@backends
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("hides", HIDES_FROM_ALL.values(), ids=HIDES_FROM_ALL)
def test_a_key_that_is_hidden_from_all_never_leaks(hides: Any, bad: float, backend: str | None) -> None:
    x, t = tuple(drawn(*[(4, 2, 4)] * 3)), tuple(drawn(*[(4, 2, 4)] * 3))
    spoilt = tuple(v.clone() for v in x)
    spoilt[1][2:], spoilt[2][2:] = bad, bad
    f = lambda *x: xfn.attention_with_lse(*x, hides, backend=backend)
    every, smooth = (0, 1, 2), lambda *x: sum(y.sin().sum() for y in f(*x))
    slope = func.grad(smooth, every)
    for program in (
        f,
        slope,
        lambda *x: func.jvp(f, x, t),
        lambda *x: func.jvp(slope, x, t),
        func.grad(lambda *x: func.jvp(smooth, x, t)[1], every),
        func.grad(lambda *x: dot(slope(*x), t), every),
        lambda *x: func.jvp(lambda *x: func.jvp(f, x, t)[1], x, t),
    ):
        agree(program(*spoilt), program(*x), 1e-14)
    assert all((g[2:] == 0).all() for g in slope(*spoilt)[1:])


APART = {
    "segments": bias.segments([3, 2], [2, 3]),
    "mask": bias.segments([3, 2], [2, 3]).materialize(5, 5)[0] == 0,
    "-inf": bias.segments([3, 2], [2, 3]).materialize(5, 5).double(),
    "span": bias.span(torch.tensor([0, 0, 0, 2, 2]), torch.tensor([2, 2, 2, 5, 5])),
}


@gpu
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
@pytest.mark.parametrize("spoil", ["q", "k", "v", "dq", "dk", "dv", "dout", "dlse", "tout"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("hides", APART.values(), ids=APART)
def test_two_documents_never_meet(hides: Any, bad: float, spoil: str, backend: str | None) -> None:
    """All about the second document is spoilt: an operand, a tangent or a cotangent; the first does not change.

    Not asked of the reference: plain torch multiplies a hidden weight, which is zero, by such a tangent.
    """
    sizes = {"q": 5, "k": 5, "v": 5, "dq": 5, "dk": 5, "dv": 5, "dout": 5, "tout": 5}
    clean = {name: drawn((n, 2, 4))[0] for name, n in sizes.items()} | {"dlse": drawn((2, 5))[0]}
    spoilt = {name: t.clone() for name, t in clean.items()}
    first = {name: 2 if name[-1] in "kv" else 3 for name in "qkv"}
    spoilt[spoil][(..., slice(3, None)) if spoil == "dlse" else slice(2 if spoil[-1] in "kv" else 3, None)] = bad

    def programs(at: dict[str, Tensor]) -> Any:
        x, t = tuple(at[n] for n in "qkv"), tuple(at["d" + n] for n in "qkv")
        f = lambda *x: xfn.attention_with_lse(*x, hides, backend=backend)
        pull = lambda *x: func.vjp(f, *x)[1]((at["dout"], at["dlse"]))
        push = lambda *x: func.jvp(f, x, t)[1]
        own = lambda outs: (outs[0][:3], outs[1][:, :3])
        part = lambda grads: tuple(g[: first[n]] for n, g in zip("qkv", grads, strict=True))
        yield own(f(*x))
        yield part(pull(*x))
        yield own(push(*x))
        yield part(func.jvp(pull, x, t)[1])
        yield own(func.jvp(push, x, t)[1])
        yield part(func.vjp(push, *x)[1]((at["tout"], at["dlse"])))
        yield part(func.vjp(pull, *x)[1](t))

    for got, want in zip(programs(spoilt), programs(clean), strict=True):
        agree(got, want, 1e-13)


@gpu
@backends
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("spoil", [0, 1, 2], ids=["dq", "dk", "dv"])
@pytest.mark.parametrize("hides", [None, *APART.values()], ids=["nothing", *APART])
def test_a_tangent_never_shows_in_the_value(hides: Any, spoil: int, bad: float, backend: str | None) -> None:
    """Not even where both come of one pass, and its queries see its keys."""
    x, t = drawn(*[(5, 2, 4)] * 3), drawn(*[(5, 2, 4)] * 3)
    t[spoil][3:] = bad
    f = lambda *x: xfn.attention_with_lse(*x, hides, backend=backend)
    agree(func.jvp(f, tuple(x), tuple(t))[0], f(*x), 1e-13)


@gpu
@backends
@pytest.mark.parametrize("hides", APART.values(), ids=APART)
def test_a_query_spoils_the_keys_that_it_sees_alone(hides: Any, backend: str | None) -> None:
    """The loss is of the first document; the queries of the second are not finite."""
    q, k, v = drawn((5, 2, 4), (5, 2, 4), (5, 2, 4))
    spoilt = q.clone()
    spoilt[3:] = torch.nan
    slope = func.grad(lambda q, k, v: xfn.attention(q, k, v, hides, backend=backend)[:3].square().sum(), (0, 1, 2))
    for got, want, n in zip(slope(spoilt, k, v), slope(q, k, v), (3, 2, 2), strict=True):
        agree(got[:n], want[:n], 1e-13)


@gpu
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_a_blind_row_takes_any_cotangent(backend: str | None) -> None:
    """As when parts are merged by hand, whose lse is −∞."""
    q, k, v = drawn((3, 2, 4), (4, 2, 4), (4, 2, 4))
    sees = torch.tensor([True, False, True])[:, None]
    slope = func.grad(lambda *x: xfn.attention_with_lse(*x, sees, backend=backend)[1].square().sum(), (0, 1))
    dq, dk = slope(q, k, v)
    assert (dq[1] == 0).all()
    assert dk.isfinite().all()
