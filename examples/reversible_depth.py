"""Memory against depth: the same residual layers as a plain loop, with recomputation, and reversible.

    python -m examples.reversible_depth [--quick] [--seed N] [--plot FILE]

A layer is y1 = x1 + attend(x2), y2 = x2 + think(y1). Its gradient is taken three ways, by functions of the same
functions, and the most that was held at one time is read off torch's allocator. The promise is that 32 layers, made
reversible, take 1.1 times the memory of 2 at most, beyond the gradients themselves, with the gradients of the loop.

    M length        E model width        H heads
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, func
from torch.utils._pytree import tree_leaves

import xfn
from benchmarks.measure import MIB, median_seconds, peak_bytes
from xfn import bias, random

from ._shared import Params, Promise, drawing, options, progress, save

PROMISE = Promise("memory of 32 layers as a part of that of 2", 1.1, least=False, form=".2f")

E, H = 64, 4
Stack = Callable[[Sequence[tuple[Params, Params]], Tensor, Tensor], tuple[Tensor, Tensor]]


def init(key: Tensor) -> tuple[Params, Params]:
    attend, think = random.split(key)
    norm = xfn.init_layer_norm(key, E)
    return {"norm": norm, "heads": xfn.init_heads(attend, E, H)}, {"norm": norm, "mlp": xfn.init_mlp(think, E, 4 * E)}


def attend(params: Params, x: Tensor) -> Tensor:
    return xfn.heads(params["heads"], xfn.layer_norm(params["norm"], x), bias=bias.causal(), heads=H)


def think(params: Params, x: Tensor) -> Tensor:
    return xfn.mlp(params["mlp"], xfn.layer_norm(params["norm"], x))


def loop(f: Callable[..., Tensor], g: Callable[..., Tensor]) -> Stack:
    def stack(params: Sequence[tuple[Params, Params]], x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        for first, second in params:
            x1 = x1 + f(first, x2)
            x2 = x2 + g(second, x1)
        return x1, x2

    return stack


STACKS: dict[str, Stack] = {
    "plain": loop(attend, think),
    "recompute": loop(xfn.recompute(attend), xfn.recompute(think)),
    "reversible": xfn.reversible(attend, think),
}


def main(arguments: Sequence[str] | None = None) -> float:
    """Measures; how much more memory 32 reversible layers take than 2."""
    chosen = options(__doc__, arguments)
    M, depths = (64, (2, 8)) if chosen.quick else (1024, (2, 4, 8, 16, 32))
    data, weights = random.split(random.key(chosen.seed))
    x = random.normal(data, (M, E))
    params = [init(key) for key in random.split(weights, max(depths))]

    def slope(stack: Stack, depth: int) -> Tensor:
        loss = lambda params: sum(y.square().mean() for y in stack(params, x, x))
        return torch.cat([leaf.flatten() for leaf in tree_leaves(func.grad(loss)(params[:depth]))])

    # One table: MiB by depth, then seconds of the deepest.
    found: dict[str, list[float]] = {name: [] for name in STACKS}
    for depth in progress(depths, "measuring"):
        for name, stack in STACKS.items():
            found[name].append(peak_bytes(partial(slope, stack, depth)) / MIB)
    seconds = median_seconds(
        *(partial(slope, stack, max(depths)) for stack in STACKS.values()), repeats=1 if chosen.quick else 3
    )
    print(f"{'layers':<10}" + "".join(f"{depth:>7}" for depth in depths) + "       time")
    for (name, row), taken in zip(found.items(), seconds, strict=True):
        print(f"{name:<10}" + "".join(f"{mib:>7.1f}" for mib in row) + f" MiB {taken * 1e3:.0f} ms")

    plain, *others = (slope(stack, max(depths)) for stack in STACKS.values())
    for name, other in zip(list(STACKS)[1:], others, strict=True):
        print(f"gradients of {name} and plain are {(other - plain).norm() / plain.norm():.0e} apart")
    if chosen.plot:
        figure, (panel,) = drawing(4.2, 2.4)
        for name, row in found.items():
            panel.plot(depths, row, ".-", label=name)
        panel.set(xlabel="layers", ylabel="MiB")
        panel.legend(fontsize=7)
        save(figure, chosen.plot)
    row = found["reversible"]
    return PROMISE.show(row[-1] / row[0], chosen.quick)


if __name__ == "__main__":
    main()
