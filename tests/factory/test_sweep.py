"""Every combination of parts builds and takes three steps, or is refused by the name of the part that cannot."""

import itertools
from typing import Any

import pytest
import torch

import xfn
from xfn import random
from xfn.parts import catalogue

DIMS = xfn.Dims(model=8, heads=2, length=16, vocab=5)
TOKENS = random.randint(random.key(0), (2, 16), 0, 5)
RESIDUALS, POSITIONS = catalogue("residual"), catalogue("position")
PAIRS = list(itertools.product(catalogue("attention"), catalogue("feedforward")))


def train(config: Any) -> None:
    """Three steps down the gradient, from which every parameter has a finite share."""
    model = xfn.build(config)
    net = xfn.nn.Module(model, random.key(0))
    before = {name: t.clone() for name, t in net.state_dict().items()}
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for i in range(3):
        logits, aux = net(TOKENS, key=random.key(i))
        optimiser.zero_grad()
        (logits.square().mean() + sum(aux.values())).backward()
        optimiser.step()
    assert logits.shape == (2, 16, 5)
    assert all(t.isfinite().all() for t in net.parameters())
    assert any(not torch.equal(t, before[name]) for name, t in net.state_dict().items())


@pytest.mark.parametrize("name", catalogue("attention"))
def test_it_looks_at_another_sequence_or_is_refused_by_name(name: str) -> None:
    """Where the target is shorter than the source, whose padding changes nothing."""
    part = catalogue("attention")[name]()
    refusal = None
    try:
        model = xfn.build(xfn.Transformer(xfn.Encoder(DIMS), xfn.Decoder(DIMS, cross=part)))
        params = model.init(random.key(0))
        y, _ = model.apply(params, TOKENS, TOKENS[:, :5], source_bias=xfn.bias.span(0, torch.tensor([[9], [9]])))
        other = torch.cat([TOKENS[:, :9], TOKENS[:, 9:] + 1], -1) % 5
        again, _ = model.apply(params, other, TOKENS[:, :5], source_bias=xfn.bias.span(0, torch.tensor([[9], [9]])))
        torch.testing.assert_close(again, y)
        assert y.shape == (2, 5, 5)
    except TypeError as error:
        refusal = str(error)
    assert refusal is None or refusal.startswith(
        (f"{type(part).__name__}.apply takes no", f"{type(part).__name__}.apply mixes")
    )


@pytest.mark.parametrize(("attention", "feedforward"), PAIRS, ids=map(" ".join, PAIRS))
def test_it_takes_three_steps_or_is_refused_by_name(attention: str, feedforward: str) -> None:
    parts = {"attention": catalogue("attention")[attention](), "feedforward": catalogue("feedforward")[feedforward]()}
    for causal, (residual, position) in zip(
        itertools.cycle((False, True, False)), itertools.product(RESIDUALS, POSITIONS), strict=False
    ):
        more = {"residual": RESIDUALS[residual](), "position": POSITIONS[position]()}
        config = xfn.Encoder(DIMS, **parts, **more, causal=causal)
        refusal = None
        try:
            train(config)
        except TypeError as error:
            refusal = str(error)
        names = tuple(f"{type(part).__name__}.apply" for part in (*parts.values(), *more.values()))
        assert refusal is None or refusal.startswith(names)
