"""A merge of attentions over disjoint keys is the attention over all of them, under every transform."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, func

import xfn
from xfn import ShapeError, bias

from ..cases import agree
from ..device import gpu
from ..transforms import THIRD, TRANSFORMS, Point, Transform

CUTS = (slice(0, 2), slice(2, 2), slice(2, 7))


def whole(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return xfn.attention_with_lse(q, k, v, backend="reference")


def merged(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """In three parts, of which one has no keys."""
    parts = [xfn.attention_with_lse(q, k[..., n, :, :], v[..., n, :, :]) for n in CUTS]
    return xfn.merge_attentions(*zip(*parts, strict=True))


@gpu
@pytest.mark.parametrize("transform", [t for t in TRANSFORMS if t not in THIRD], ids=lambda t: t.__name__)
def test_is_the_attention_over_all_keys(transform: Transform) -> None:
    draw = lambda *lead: tuple(torch.randn(*lead, n, 2, 3, dtype=torch.float64) for n in (4, 7, 7))
    at = Point(draw(), draw(), draw(), draw(3), draw(3))
    agree(transform(merged, at), transform(whole, at))


@gpu
def test_a_part_that_sees_nothing_adds_nothing_even_garbage() -> None:
    q, k, v = torch.randn(3, 4, 2, 3, dtype=torch.float64)
    out, lse = xfn.attention_with_lse(q, k, v, bias.causal())
    for garbage in (0.0, torch.nan):
        nothing = torch.full_like(lse, -torch.inf)
        f = lambda out, lse: xfn.merge_attentions([out, out * garbage], [lse, nothing])
        agree(f(out, lse), (out, lse))
        agree(func.jvp(f, (out, lse), (out, lse))[1], (out, lse))
    out, lse = xfn.merge_attentions([out * 0, out * 0], [nothing, nothing])
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


def test_parts_may_be_stacked_and_keep_their_dtype() -> None:
    q, k, v = torch.randn(3, 4, 2, 3).bfloat16()
    out, lse = xfn.attention_with_lse(q, k, v)
    two, double = xfn.merge_attentions(torch.stack([out, out]), torch.stack([lse, lse]))
    assert torch.equal(two, out)
    torch.testing.assert_close(double, lse + torch.tensor(2.0).log())
    assert (two.dtype, double.dtype) == (torch.bfloat16, torch.float32)


OUT, LSE = torch.zeros(5, 2, 3), torch.zeros(2, 5)


@gpu
def test_parts_broadcast_each_for_itself() -> None:
    """Two parts of two examples, with one lse for both examples."""
    out, lse = torch.randn(2, 2, 5, 2, 3, dtype=torch.float64), torch.randn(2, 2, 5, dtype=torch.float64)
    got = xfn.merge_attentions(list(out), list(lse))
    want = xfn.merge_attentions(list(out), [t.expand(2, 2, 5) for t in lse])
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


def test_a_part_that_is_spoilt_spoils_the_whole() -> None:
    out, lse = torch.randn(2, 5, 2, 3), torch.randn(2, 2, 5)
    lse[0, 1, 3] = torch.nan
    whole, total = xfn.merge_attentions(out, lse)
    assert whole[3, 1].isnan().all()
    assert total[1, 3].isnan()
    assert whole.isnan().sum() == 3


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: xfn.merge_attentions([], []), "one lse for every out and at least one, but got 0 and 0"),
        (lambda: xfn.merge_attentions([OUT], [LSE, LSE]), "but got 1 and 2"),
        (lambda: xfn.merge_attentions([OUT], [LSE.mT]), "lse [..., H, M] has H=5, but out has H=2"),
        (
            lambda: xfn.merge_attentions([OUT, OUT[..., :2]], [LSE, LSE]),
            "the parts differ: out is [5, 2, 2] beside [5, 2, 3]",
        ),
    ],
)
def test_errors_say_what_to_write(call: Any, text: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(text)):
        call()
