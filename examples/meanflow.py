"""One step from noise to data: a MeanFlow, whose loss has a jvp through attention in it.

    python -m examples.meanflow [--quick] [--seed N] [--plot FILE]

A transformer u(z, r, t) of sets of points learns the mean velocity from r to t of a flow that takes ellipses, begun
anywhere, to noise; by the identity u = v − (t − r) du/dt, whose derivative is a jvp, mapped over examples. One step
z − u(z, 0, 1) then draws an ellipse. The promise is |(x/a)² + (y/b)² − 1| of 0.4 at most in the mean of its points;
noise has 2.0. The picture has noise, what became of it, and data.

    M points of a set        z [M, 2]        r ≤ t times        E model width

Source: Geng, Deng, Bai, Kolter and He, "Mean flows for one-step generative modeling" (2025).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, func

import xfn
from benchmarks.measure import MIB, peak_bytes
from xfn import random
from xfn.parts.position.learned import Learned

from ._shared import Params, Promise, adam, adam_step, count, drawing, one_cycle, options, progress, save

PROMISE = Promise("mean distance from the ellipse", 0.4, least=False, form=".2f")

M, WIDE, HIGH = 16, 2.0, 2 / 3
CONFIG = xfn.Encoder(xfn.Dims(model=64, heads=4, length=M), layers=2, position=Learned())
Velocity = Callable[[Params, Tensor, Tensor, Tensor], Tensor]


def model(config: xfn.Encoder) -> tuple[Callable[[Tensor], Params], Velocity]:
    """A pair of functions: parameters from a key, and the mean velocity from r to t at z."""
    body, E = xfn.build(config), config.dims.model

    def init(key: Tensor) -> Params:
        keys = random.split(key, 4)
        ends = {"in": xfn.init_linear(keys[1], 2, E), "out": xfn.init_linear(keys[2], E, 2)}
        return ends | {"body": body.init(keys[0]), "time": xfn.init_mlp(keys[3], E, 2 * E)}

    def apply(params: Params, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        angles = torch.stack([t, t - r])[:, None] * torch.logspace(0, 1.5, E // 4)
        when = xfn.mlp(params["time"], torch.cat([angles.sin(), angles.cos()], -1).flatten())
        x, _ = body.apply(params["body"], xfn.linear(params["in"], z) + when)
        return xfn.linear(params["out"], x)

    return init, apply


def ellipse(key: Tensor) -> Tensor:
    """``[M, 2]`` points in their order around an ellipse, from anywhere on."""
    angle = 2 * math.pi * (random.uniform(key) + torch.arange(M) / M)
    return torch.stack([WIDE * angle.cos(), HIGH * angle.sin()], -1)


def distance(x: Tensor) -> Tensor:
    return ((x / torch.tensor([WIDE, HIGH])).square().sum(-1) - 1).abs().mean()


def objective(apply: Velocity, params: Params, x: Tensor, key: Tensor) -> Tensor:
    """How far u is from what the identity says, for one example."""
    noise, when, which = random.split(key, 3)
    r, t = random.uniform(when, (2,)).sort().values
    r = torch.where(random.bernoulli(which, 0.5), t, r)
    e = random.normal(noise, x.shape)
    z, v = (1 - t) * x + t * e, e - x
    jvp: Any = func.jvp
    u, slope = jvp(lambda *at: apply(params, *at), (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    error: Tensor = (u - (v - (t - r) * slope).detach()).square().mean()
    return error / (error.detach() + 0.01)


@dataclass(frozen=True)
class Plain:
    """Attention as formulas have it, to compare with."""

    def init(self, key: Tensor, dims: xfn.Dims) -> Params:
        return {}

    def apply(self, params: Params, q: Tensor, k: Tensor, v: Tensor, bias: Any = None, *, key: Any = None) -> Tensor:
        s = torch.einsum("...mhk,...nhk->...hmn", q, k) * q.shape[-1] ** -0.5
        return torch.einsum("...hmn,...nhv->...mhv", s.softmax(-1), v)


def peak(attention: Any, length: int) -> int:
    """Bytes that one gradient of the loss holds at its worst, on a set of so many points."""
    made = replace(CONFIG, dims=replace(CONFIG.dims, length=length), attention=attention)
    init, apply = model(made)
    params, x = init(random.key(0)), random.normal(random.key(1), (length, 2))
    return peak_bytes(lambda: func.grad(lambda params: objective(apply, params, x, random.key(2)))(params))


def main(arguments: Sequence[str] | None = None) -> float:
    """Trains, and draws in one step; how far what is drawn is from the ellipse."""
    chosen = options(__doc__, arguments)
    weights, draws, asked = random.split(random.key(chosen.seed), 3)
    init, apply = model(CONFIG)
    params = init(weights)
    memory, steps, batch = adam(params), *((4, 8) if chosen.quick else (700, 128))
    print(f"model     {count(params):,} parameters, sets of {M} points")

    def loss(params: Params, key: Tensor) -> Tensor:
        one = lambda pair: objective(apply, params, ellipse(pair[0]), pair[1])
        return func.vmap(one)(random.split(key, (batch, 2))).mean()

    bar = progress(range(steps), "training")
    for step in bar:
        slopes, now = func.grad_and_value(loss)(params, random.fold_in(draws, step))
        params, memory = adam_step(params, slopes, memory, 5e-3 * one_cycle(step, steps))
        bar.set_postfix_str(f"loss {now:.2f}", refresh=False)

    # One step for all that is drawn.
    e = random.normal(asked, (256, M, 2))
    zero, one = torch.zeros(()), torch.ones(())
    drawn = e - func.vmap(apply, (None, 0, None, None))(params, e, zero, one)
    print(f"distance  {distance(e):.2f} of noise, {distance(drawn):.2f} of what is drawn from it in one step")
    length = 64 if chosen.quick else 512
    ours, plain = (peak(part, length) / MIB for part in (CONFIG.attention, Plain()))
    print(f"memory    {ours:.0f} MiB for a gradient of the loss on {length} points, {plain:.0f} with plain softmax")
    if chosen.plot:
        figure, panels = drawing(6.4, 1.8, 3)
        data = func.vmap(ellipse)(random.split(asked, 4))
        for panel, name, sets in zip(panels, ("noise", "one step", "data"), (e[:4], drawn[:4], data), strict=True):
            for x in sets:
                panel.plot(*torch.cat([x, x[:1]]).T, ".-", markersize=3, linewidth=0.6)
            panel.set(xlim=(-3.2, 3.2), ylim=(-2, 2))
            panel.set_title(name, fontsize=8)
        save(figure, chosen.plot)
    return PROMISE.show(distance(drawn).item(), chosen.quick)


if __name__ == "__main__":
    main()
