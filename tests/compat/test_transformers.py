"""Every keyword that a layer of transformers' may pass is honoured, as its definition says, or refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from xfn.compat.transformers import attend

B, H, G, M, K = 2, 4, 2, 6, 8
GENERATOR = torch.Generator().manual_seed(0)
HIDES = torch.rand(B, 1, M, M, generator=GENERATOR) < 0.6
HIDES[0, 0, 1] = False
ADDED = torch.randn(B, H, M, M, generator=GENERATOR, dtype=torch.float64)
SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
EARLIER = torch.ones(M, M).tril().bool()
NEAR = EARLIER & ~torch.ones(M, M).tril(-3).bool()
PLACES = torch.tensor([0, 0, 1, 1, 1, 2])
SAME = PLACES[:, None] == PLACES
ENDS = torch.tensor([0, 2, 5, 6], dtype=torch.int32)
EVERY = torch.ones(M, M).bool()


class Layer(torch.nn.Module):
    def __init__(self, is_causal: bool) -> None:
        super().__init__()
        self.is_causal = is_causal


def plain(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float, added: Any, cap: Any, sinks: Any) -> Tensor:
    """``[B, M, H, K]`` from the definition, a sink being one more column."""
    k, v = (t.repeat_interleave(H // G, 1) for t in (k, v))
    s = scale * q @ k.mT
    s = s if cap is None else cap * (s / cap).tanh()
    s = torch.where(visible, s if added is None else s + added, -torch.inf)
    column = torch.full_like(s[..., :1], -1e9) if sinks is None else sinks[:, None, None].expand_as(s[..., :1])
    weights = torch.cat([s, column], -1).softmax(-1)[..., :-1]
    return (weights @ v).transpose(1, 2)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bidirectional": ({"is_causal": False}, {}),
    "causal": ({"is_causal": True}, {"visible": EARLIER}),
    "causal as the layer is": ({}, {"visible": EARLIER}),
    "a mask instead": ({"attention_mask": HIDES}, {"visible": HIDES}),
    "a mask that is longer": ({"attention_mask": torch.cat([HIDES, HIDES], -1)}, {"visible": HIDES}),
    "an added mask": ({"attention_mask": ADDED}, {"added": ADDED}),
    "scaling": ({"attention_mask": HIDES, "scaling": 0.2}, {"visible": HIDES, "scale": 0.2}),
    "a scaling that is learnt": ({"is_causal": False, "scaling": torch.tensor(0.2)}, {"scale": 0.2}),
    "window": ({"sliding_window": 3}, {"visible": NEAR}),
    "a window that a mask holds": ({"sliding_window": 3, "attention_mask": HIDES}, {"visible": HIDES}),
    "a window that hides nothing": ({"sliding_window": M, "is_causal": False}, {}),
    "softcap": ({"softcap": 0.4}, {"cap": 0.4, "visible": EARLIER}),
    "softcap, mask, scaling": (
        {"softcap": 0.4, "attention_mask": HIDES, "scaling": 2.0}, {"cap": 0.4, "visible": HIDES, "scale": 2.0}),
    "sinks": ({"s_aux": SINKS}, {"sinks": SINKS, "visible": EARLIER}),
    "sinks and mask": ({"s_aux": SINKS, "attention_mask": HIDES}, {"sinks": SINKS, "visible": HIDES}),
    "position bias": ({"position_bias": ADDED, "is_causal": False}, {"added": ADDED}),
    "position bias, causal": ({"position_bias": ADDED}, {"added": ADDED, "visible": EARLIER}),
    "position bias and mask": (
        {"position_bias": ADDED, "attention_mask": HIDES}, {"added": ADDED, "visible": HIDES}),
    "packed": ({"cu_seq_lens_q": ENDS, "max_length_q": 3}, {"visible": SAME & EARLIER}),
    "packed, bidirectional": (
        {"cu_seq_lens_q": ENDS, "cu_seq_lens_k": ENDS, "is_causal": False, "seq_idx": PLACES[None]}, {"visible": SAME}),
    "packed, window": ({"cu_seq_lens_q": ENDS, "sliding_window": 2}, {"visible": SAME & ~EARLIER.tril(-2) & EARLIER}),
    "all together": (
        {"softcap": 0.4, "s_aux": SINKS, "position_bias": ADDED, "attention_mask": HIDES, "scaling": 0.5},
        {"cap": 0.4, "sinks": SINKS, "added": ADDED, "visible": HIDES, "scale": 0.5}),
    "what others are told": (
        {"position_ids": PLACES, "use_cache": True, "output_attentions": False, "softcap": None, "head_mask": None},
        {"visible": EARLIER}),
}  # fmt: skip


def operands() -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(B, heads, M, K, dtype=torch.float64) for heads in (H, G, G))
    return q, k, v


@pytest.mark.parametrize("case", CASES)
def test_a_keyword_means_what_it_says(case: str) -> None:
    """Value, gradient, tangent and second derivative; a row that sees nothing, and no sink, is zero."""
    keywords, meaning = CASES[case]
    means = {"visible": EVERY, "scale": K**-0.5, "added": None, "cap": None, "sinks": None} | meaning
    if means["sinks"] is None:  # for the reference has a column that a row of nothing falls to
        means["sinks"] = torch.full((H,), -1e4, dtype=torch.float64)
    ours = lambda *x: attend(Layer(True), *x, **keywords)[0]
    theirs = lambda *x: plain(*x, **means)
    x, t = operands(), operands()
    programs: tuple[Callable[[Any], Any], ...] = (
        lambda f: f(*x),
        lambda f: grad(lambda *x: f(*x).pow(3).sum(), (0, 1, 2))(*x),
        lambda f: jvp(f, x, t)[1],
        lambda f: jvp(grad(lambda *x: f(*x).pow(3).sum(), (0, 1, 2)), x, t)[1],
    )
    for program in programs:
        torch.testing.assert_close(program(ours), program(theirs))
    assert ours(*x).is_contiguous()


@pytest.mark.parametrize("name", ["s_aux", "position_bias", "attention_mask", "scaling"])
def test_gradients_flow_into_what_is_learnt(name: str) -> None:
    value = {"s_aux": SINKS, "scaling": torch.tensor(0.3, dtype=torch.float64)}.get(name, ADDED)
    x = operands()
    f = lambda value: attend(Layer(False), *x, **{name: value})[0].pow(2).sum()
    t = torch.randn_like(value)
    step = 1e-6 * t
    slope = (f(value + step) - f(value - step)) / 2e-6
    torch.testing.assert_close((grad(f)(value) * t).sum(), slope, rtol=1e-6, atol=1e-7)


def test_one_query_of_a_causal_layer_sees_all() -> None:
    q, k, v = operands()
    torch.testing.assert_close(attend(Layer(True), q[:, :, -1:], k, v)[0], attend(Layer(True), q, k, v)[0][:, -1:])


def test_examples_go_through_vmap() -> None:
    x = operands()
    f = lambda *x: attend(Layer(True), *x, softcap=1.0, s_aux=SINKS)[0]
    torch.testing.assert_close(vmap(f)(*(t[:, None] for t in x))[:, 0], f(*x))


def test_dropout_is_seeded_by_torch() -> None:
    x = operands()
    torch.manual_seed(3)
    first, second = (attend(Layer(False), *x, dropout=0.5)[0] for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(attend(Layer(False), *x, dropout=0.5)[0], first)
    assert not torch.equal(first, second)


REFUSED: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "unknown": (TypeError, {"indices": PLACES, "sinks": SINKS}, "indices, sinks"),
    "a paged cache": (TypeError, {"cache": object()}, "cache"),
    "sequences named by number": (TypeError, {"seq_idx": PLACES}, "seq_idx"),
    "weights": (ValueError, {"output_attentions": True}, "eager"),
    "a window without a place": (ValueError, {"sliding_window": 3, "is_causal": False}, "window of 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_honoured_is_refused(case: str) -> None:
    error, keywords, says = REFUSED[case]
    with pytest.raises(error, match=says):
        attend(Layer(True), *operands(), **keywords)
