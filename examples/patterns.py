"""Attention patterns for images: made, joined, attended with, and drawn.

    python -m examples.patterns --into docs/pictures

Each picture has two squares: who sees whom among the h · w patches of an image, and what one of them sees of it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

import xfn
from xfn import patterns, plot, random

h, w = 20, 30


def masks() -> dict[str, Tensor]:
    """The patterns, by name."""
    # A patch sees its row and its column, or what is near, or what is near by chance.
    axial = patterns.axial_2d(h, w)
    local = patterns.local_2d(h, w, distance=5, p=2.0)
    likely = patterns.local_2d_gaussian(h, w, sigma=2)
    gaussian = patterns.random_from_probability(likely, int((h * w) ** 2 * 0.05), random.key(0))
    return {"axial": axial, "local": local, "gaussian": gaussian, "combined": axial | local | gaussian}


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Attends with each pattern and draws it; the files that were written."""
    parser = argparse.ArgumentParser(description="Attention patterns for images.")
    parser.add_argument("--into", type=Path, default=Path("docs/pictures"), help="the folder of the pictures")
    folder = parser.parse_args(arguments).into
    folder.mkdir(parents=True, exist_ok=True)

    written = []
    q, k, v = random.normal(random.key(1), (3, h * w, 4, 16))
    for name, mask in masks().items():
        out = xfn.attention(q, k, v, mask)
        print(f"{name:<9} {mask.float().mean():6.1%} of the pairs are live, |out| = {out.norm():.2f}")
        written.append(folder / f"{name}_pattern.svg")
        plot.save(plot.draw(mask, title=name, query=w * h // 2 + w // 2, grid=(h, w)), written[-1])
    return written


if __name__ == "__main__":
    print("\n".join(map(str, main())))
