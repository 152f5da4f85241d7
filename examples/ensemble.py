"""Eight vision transformers in one program: vmap of init, vmap of a training step, and what they disagree about.

    python -m examples.ensemble [--quick] [--seed N] [--plot FILE]

Each member has its own parameters and its own order of images, and all take a step in one call. Where they disagree
they are likely wrong: the promise is 98 % read right of those nine tenths of the digits that they agree most about.
The picture has the digits that they disagree most about.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, func
from torch.nn import functional as F

import xfn
from xfn import random
from xfn.parts.position.learned import Learned

from ._shared import (
    Memory,
    Params,
    Promise,
    adam,
    adam_step,
    classifier,
    count,
    digits,
    drawing,
    one_cycle,
    options,
    progress,
    save,
)

PROMISE = Promise("read right of the nine tenths most agreed about", 0.98)
CONFIG = xfn.Encoder(
    xfn.Dims(model=32, heads=4, length=16), layers=2, position=Learned(), patch=xfn.factory.Patch(2, channels=1)
)


def main(arguments: Sequence[str] | None = None) -> float:
    """Trains all members, and asks them; the part that is read right of what they agree about."""
    chosen = options(__doc__, arguments)
    split, weights, draws = random.split(random.key(chosen.seed), 3)
    data = digits(split)
    init, apply = classifier(CONFIG, CONFIG.dims.model)
    members, steps, batch = (3, 4, 16) if chosen.quick else (8, 300, 64)

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(apply(params, x), y)

    def step(params: Params, memory: Memory, key: Tensor, rate: float) -> tuple[Params, Memory]:
        rows = random.randint(key, (batch,), 0, len(data.x))
        return adam_step(params, func.grad(loss)(params, data.x[rows], data.y[rows]), memory, rate)

    # One member's functions, and all of them.
    params = func.vmap(init)(random.split(weights, members))
    memory = func.vmap(adam)(params)
    print(f"ensemble  {members} members, {count(params) // members:,} parameters each")
    for i in progress(range(steps), "training"):
        keys = random.split(random.fold_in(draws, i), members)
        every = func.vmap(partial(step, rate=5e-3 * one_cycle(i, steps)))
        params, memory = every(params, memory, keys)

    # Disagreement is the entropy of the mean less the mean of entropies.
    votes = func.vmap(apply, (0, None))(params, data.asked).softmax(-1)
    mean = votes.mean(0)
    doubt = entropy(mean) - entropy(votes).mean(0)
    correct = mean.argmax(-1) == data.answers
    alone = (votes.argmax(-1) == data.answers).float().mean(1)
    order = doubt.argsort()
    sure = order[: len(order) * 9 // 10]
    print(f"members   {alone.min():.1%} to {alone.max():.1%} read right, each alone")
    print(f"together  {correct.float().mean():.1%}; {correct[order[len(sure) :]].float().mean():.1%} of the last tenth")
    if chosen.plot:
        figure, panels = drawing(6.4, 1.4, 6)
        for panel, i in zip(panels, order.flip(0).tolist(), strict=False):
            panel.imshow(data.asked[i, 0].numpy(), cmap="gray_r")
            found = votes[:, i].argmax(-1).bincount(minlength=10)
            panel.set_title(", ".join(f"{n} × {digit}" for digit, n in enumerate(found.tolist()) if n), fontsize=6)
            panel.set_axis_off()
        save(figure, chosen.plot)
    return PROMISE.show(correct[sure].float().mean().item(), chosen.quick)


def entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1)


if __name__ == "__main__":
    main()
