"""Attention patterns for images: made, joined, attended with, timed, and drawn.

    python -m examples.sparse_patterns [--quick] [--seed N] [--plot FILE] [--into FOLDER]

Each patch of an image sees its row and column, what is near, or what is near by chance; a boolean mask is all that
attention takes, and finds out itself what to skip. The promise is that a gradient of attention among 4096 patches of
which each sees those within three steps, 0.6 % of all pairs, takes a fifth of the time of one without a mask, or less.
Each picture has two squares: who sees whom among the patches, and what one of them sees of the image.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, func

import xfn
from benchmarks.measure import median_seconds
from xfn import patterns, plot, random

from ._shared import Promise, drawing, options, save

PROMISE = Promise("time at 0.6 % of the pairs, as a part of all", 0.2, least=False)

h, w = 20, 30


def masks() -> dict[str, Tensor]:
    """The patterns, by name."""
    # A patch sees its row and its column, or what is near, or what is near by chance.
    axial = patterns.axial_2d(h, w)
    local = patterns.local_2d(h, w, distance=5, p=2.0)
    likely = patterns.local_2d_gaussian(h, w, sigma=2)
    gaussian = patterns.random_from_probability(likely, int((h * w) ** 2 * 0.05), random.key(0))
    return {"axial": axial, "local": local, "gaussian": gaussian, "combined": axial | local | gaussian}


def draw(folder: Path) -> None:
    for name, mask in masks().items():
        figure = plot.draw(mask, title=name, query=w * h // 2 + w // 2, grid=(h, w))
        save(figure, folder / f"{name}_pattern.svg")


def main(arguments: Sequence[str] | None = None) -> float:
    """Attends with each pattern, times and draws; what the sparsest costs, as a part of attention to all."""
    chosen = options(__doc__, arguments, into={"type": Path, "help": "the folder of the pictures"})
    q, k, v = random.normal(random.key(chosen.seed), (3, h * w, 4, 16))
    for name, mask in masks().items():
        out = xfn.attention(q, k, v, mask)
        print(f"{name:<9} {mask.float().mean():6.1%} of the pairs are live, |out| = {out.norm():.2f}")

    # The gradient with ever fewer pairs, beside that with all.
    side, steps = (16, 1) if chosen.quick else (64, 3)
    q, k, v = random.normal(random.key(chosen.seed), (3, side * side, 4, 32))
    near = {distance: patterns.local_2d(side, side, distance=distance, p=2.0) for distance in (24, 12, 6, 3)}

    def gradient(mask: Tensor | None) -> Any:
        return func.grad(lambda q, k, v: xfn.attention(q, k, v, mask).square().sum(), (0, 1, 2))(q, k, v)

    runs = [partial(gradient, mask) for mask in (None, *near.values())]
    for run in runs:
        run()
    whole, *seconds = median_seconds(*runs, repeats=steps)
    print(f"\npatches   {side} × {side}: {whole * 1e3:.0f} ms for a gradient of attention to all")
    for (distance, mask), taken in zip(near.items(), seconds, strict=True):
        print(f"within {distance:>2} {mask.float().mean():6.1%} of the pairs, {taken / whole:6.1%} of the time")

    if chosen.plot:
        figure, (panel,) = drawing(4.2, 2.4)
        density = [mask.float().mean().item() for mask in near.values()]
        panel.loglog(density, [taken / whole for taken in seconds], ".-")
        panel.loglog(density, density, color="gray", linewidth=0.8, linestyle=":")
        panel.set(xlabel="part of the pairs", ylabel="part of the time")
        save(figure, chosen.plot)
    if chosen.into:
        draw(chosen.into)
    return PROMISE.show(seconds[-1] / whole, chosen.quick)


if __name__ == "__main__":
    main()
