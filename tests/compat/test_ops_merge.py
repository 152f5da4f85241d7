"""Parts of an attention, merged: values, gradients and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, func

from tests.cases import agree
from xfn.compat import ops as xops
from xfn.compat.ops.fmha import attn_bias as b
from xfn.compat.ops.fmha import merge_training

from .biases import dense

CUTS = (slice(0, 1), slice(1, 5), slice(5, 5), slice(5, 9))


def parts(q: Tensor, k: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [xops.memory_efficient_attention_partial(q, k[:, n], v[:, n]) for n in CUTS]


@pytest.mark.parametrize("groups", [(), (2,)])
@pytest.mark.parametrize("stacked", [False, True])
def test_parts_are_the_whole(groups: tuple[int, ...], stacked: bool) -> None:
    q = torch.randn(2, 6, *groups, 3, 4, dtype=torch.float64)
    k, v = torch.randn(2, 2, 9, *groups, 3, 4, dtype=torch.float64)

    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return dense(*(t.flatten(2, -2) for t in (q, k, v))).reshape(q.shape)

    def merged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outs, lses = zip(*parts(q, k, v), strict=True)
        given = (torch.stack(outs), torch.stack(lses)) if stacked else (outs, lses)
        return xops.merge_attentions(*given)[0]

    agree(merged(q, k, v), whole(q, k, v))
    ours, theirs = (func.grad(lambda *x: f(*x).sin().sum(), (0, 1, 2)) for f in (merged, whole))
    agree(ours(q, k, v), theirs(q, k, v))
    outs, lses = zip(*parts(q, k, v), strict=True)
    _, lse = xops.memory_efficient_attention_forward_requires_grad(q, k, v)
    agree(xops.merge_attentions(outs, lses)[1], lse)
    assert xops.merge_attentions(outs, lses, write_lse=False)[1] is None
    narrow, _ = xops.merge_attentions(outs, lses, output_dtype=torch.bfloat16)
    assert narrow.dtype == torch.bfloat16
    agree(narrow, whole(q, k, v), torch.finfo(torch.bfloat16).eps)


def test_the_gradient_of_the_whole_is_given_to_each_part() -> None:
    """What belongs to a part of the keys follows from the whole's output and lse."""
    q, k, v, slope = torch.randn(4, 2, 9, 3, 4, dtype=torch.float64)
    out, lse = xops.memory_efficient_attention_forward_requires_grad(q, k, v)
    want = xops.memory_efficient_attention_backward(slope, out, lse, q, k, v)
    found = [xops.memory_efficient_attention_backward(slope, out, lse, q, k[:, n], v[:, n]) for n in CUTS]
    dq, dk, dv = zip(*found, strict=True)
    agree((sum(dq), torch.cat(dk, 1), torch.cat(dv, 1)), want)


def test_partials_are_rearranged_and_merged() -> None:
    q, k, v = (t.requires_grad_() for t in torch.randn(3, 2, 8, 3, 4, dtype=torch.float64))
    made = merge_training.memory_efficient_attention_partial_autograd
    halves = [made(q, k[:, n], v[:, n]) for n in (slice(0, 3), slice(3, 8))]
    turned = [part.apply(lambda x: x[:, 2:].flip(2)) for part in halves]
    want = dense(q, k, v)[:, 2:].flip(2)
    assert not halves[0].is_bmghk()
    got = merge_training.merge_attentions_autograd(*turned)
    agree(got, want)
    slope = torch.randn_like(got)
    agree(torch.autograd.grad(got, (q, k, v), slope), torch.autograd.grad(want, (q, k, v), slope))
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_training.merge_attentions_autograd()


def test_a_cache_in_parts() -> None:
    """A prefix in padded slots, and the newest tokens among themselves."""
    lengths, new = [5, 3], 2
    cache_k, cache_v = torch.randn(2, 1, 12, 2, 4, dtype=torch.float64)
    q, k, v = torch.randn(3, 2, new, 2, 4, dtype=torch.float64)
    prefix = b.BlockDiagonalPaddedKeysMask.from_seqlens([new] * 2, 6, lengths)
    out, lse = xops.memory_efficient_attention_partial(q.reshape(1, -1, 2, 4), cache_k, cache_v, prefix)
    old = out.reshape(2, new, 2, 4), lse.reshape(2, 2, new).transpose(0, 1)
    own = xops.memory_efficient_attention_partial(q, k, v, b.LowerTriangularMask())
    got, _ = xops.merge_attentions([old[0], own[0]], [old[1], own[1]])
    for i, length in enumerate(lengths):
        keys, values = (
            torch.cat([c[:, 6 * i : 6 * i + length], t[i : i + 1]], 1) for c, t in ((cache_k, k), (cache_v, v))
        )
        mask = b.LowerTriangularFromBottomRightMask().materialize((new, length + new))
        agree(got[i : i + 1], dense(q[i : i + 1], keys, values, mask))


@pytest.mark.parametrize(
    ("outs", "lses", "text"),
    [
        ([], [], "one shape"),
        ([torch.zeros(2, 5, 3)], [torch.zeros(2, 5)], "a part is"),
        ([torch.zeros(2, 5, 3, 4)], [torch.zeros(2, 5, 3)], "a part is"),
        ([torch.zeros(2, 5, 3, 4), torch.zeros(2, 4, 3, 4)], [torch.zeros(2, 3, 5), torch.zeros(2, 3, 4)], "one shape"),
        ([torch.zeros(2, 5, 3, 4)] * 2, [torch.zeros(2, 3, 5)], "one lse for every out"),
    ],
)
def test_what_is_refused(outs: Any, lses: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        xops.merge_attentions(outs, lses)
