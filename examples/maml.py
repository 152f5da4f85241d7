"""Learning to learn sines: second-order gradients through inner steps, mapped over tasks.

    python -m examples.maml [--quick] [--seed N] [--plot FILE]

A function of a number attends with it to a memory of learned keys and values. For each task, a sine of its own height
and phase, three steps on ten points make parameters of its own; the gradient of the error after them, through them, is
what the first parameters learn from, and how long the steps are. The promise is a squared error of 0.1 at most on
unseen sines; before the steps it is about 3.

    N keys        H heads        K features of a head

Source: Finn, Abbeel and Levine, "Model-agnostic meta-learning for fast adaptation of deep networks" (2017).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, func
from torch.utils._pytree import tree_map

import xfn
from xfn import random

from ._shared import Params, Promise, adam, adam_step, count, drawing, one_cycle, options, progress, save

PROMISE = Promise("squared error after three steps on ten points", 0.1, least=False, form=".3f")

N, H, K = 32, 4, 16
INNER, POINTS = 3, 10


def init(key: Tensor) -> Params:
    keys = random.split(key, 4)
    return {
        "ask": init_two(keys[0], 1, H * K),
        "keys": random.normal(keys[1], (N, H, K)),
        "values": 0.5 * random.normal(keys[2], (N, H, K)),
        "answer": init_two(keys[3], H * K, 1),
    }


def init_two(key: Tensor, inputs: int, outputs: int, hidden: int = 64) -> Params:
    first, second = random.split(key)
    return {"up": xfn.init_linear(first, inputs, hidden), "down": xfn.init_linear(second, hidden, outputs)}


def two(params: Params, x: Tensor) -> Tensor:
    return xfn.linear(params["down"], xfn.linear(params["up"], x, "gelu"))


def apply(params: Params, x: Tensor) -> Tensor:
    """``[n]`` to ``[n]``."""
    q = two(params["ask"], x[:, None]).unflatten(-1, (H, K))
    y = xfn.attention(q, params["keys"], params["values"])
    return two(params["answer"], y.flatten(-2)).squeeze(-1)


def error(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return (apply(params, x) - y).square().mean()


def sine(key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points of one task to adapt to, and as many to be asked."""
    place, height, phase = random.split(key, 3)
    x = random.uniform(place, (2, POINTS), -5.0, 5.0)
    y = random.uniform(height, (), 0.1, 5.0) * (x + random.uniform(phase, (), 0.0, math.pi)).sin()
    return x[0], y[0], x[1], y[1]


def adapted(params: Params, rates: Params, x: Tensor, y: Tensor) -> Params:
    """Parameters after some steps; each tensor of them has a length of step for each of its numbers."""
    for _ in range(INNER):
        slopes = func.grad(error)(params, x, y)
        params = tree_map(lambda w, g, rate: w - rate * g, params, slopes, rates)
    return params


def outer(learned: tuple[Params, Params], key: Tensor) -> Tensor:
    """The error on one task, after the steps."""
    x, y, asked, answers = sine(key)
    return error(adapted(*learned, x, y), asked, answers)


def main(arguments: Sequence[str] | None = None) -> float:
    """Learns to learn; the squared error on unseen tasks."""
    chosen = options(__doc__, arguments)
    weights, draws, unseen = random.split(random.key(chosen.seed), 3)
    params = init(weights)
    learned = (params, tree_map(lambda w: torch.full_like(w, 0.01), params))
    memory, steps, tasks = adam(learned), *((4, 4) if chosen.quick else (500, 32))
    print(f"model     {count(params):,} parameters, and as many lengths of steps")

    bar = progress(range(steps), "training")
    for step in bar:
        loss = lambda learned, key: func.vmap(outer, (None, 0))(learned, random.split(key, tasks)).mean()
        slopes, now = func.grad_and_value(loss)(learned, random.fold_in(draws, step))
        learned, memory = adam_step(learned, slopes, memory, 3e-3 * one_cycle(step, steps))
        bar.set_postfix_str(f"error {now:.2f}", refresh=False)

    keys = random.split(unseen, 16 if chosen.quick else 500)
    after = func.vmap(outer, (None, 0))(learned, keys)
    x, y, asked, answers = func.vmap(sine)(keys)
    before = func.vmap(error, (None, 0, 0))(learned[0], asked, answers)
    print(f"unseen    squared error {before.mean():.2f} before the steps, {after.mean():.3f} after them")
    if chosen.plot:
        figure, panels = drawing(6.4, 1.8, 3)
        grid = torch.linspace(-5, 5, 100)
        for i, panel in enumerate(panels):
            own = adapted(*learned, x[i], y[i])
            panel.plot(grid, apply(learned[0], grid), color="gray", linewidth=0.8, label="before")
            panel.plot(grid, apply(own, grid), label="after")
            panel.plot(x[i], y[i], "k.", markersize=4)
        panels[0].legend(fontsize=6)
        save(figure, chosen.plot)
    return PROMISE.show(after.mean().item(), chosen.quick)


if __name__ == "__main__":
    main()
