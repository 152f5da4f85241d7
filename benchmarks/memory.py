"""``python -m benchmarks.memory``: what attention holds beyond its inputs and results, by length, for each transform;
drawn to docs/pictures/memory.svg.

One head of 64 features in float32, M = N, at torch's allocator; of ours, and of a softmax by hand.
"""

import argparse
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp

import xfn
from benchmarks.attention import peers
from benchmarks.measure import MIB, peak_bytes

Attend = Callable[..., Tensor]
Triple = tuple[Tensor, Tensor, Tensor]

PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "memory.svg"
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
MOST = 4096
"""The longest that a softmax by hand is asked for: behind it, its Hessian product takes gigabytes."""


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return peers.softmax()(*(t.transpose(-3, -2) for t in (q, k, v))).transpose(-3, -2)


def slope(attend: Attend) -> Callable[..., Any]:
    return grad(lambda *x: attend(*x).square().sum(), (0, 1, 2))


USES: dict[str, Callable[[Attend, Triple, Triple], Any]] = {
    "gradient": lambda attend, x, t: slope(attend)(*x),
    "jvp": lambda attend, x, t: jvp(attend, x, t),
    "jvp of the gradient": lambda attend, x, t: jvp(slope(attend), x, t),
}


def measured(lengths: Sequence[int], most: int) -> dict[str, dict[str, list[float]]]:
    """MiB by transform and attention, a number a length."""
    found: dict[str, dict[str, list[float]]] = {use: {"xfn": [], "softmax by hand": []} for use in USES}
    for M in lengths:
        x, t = (tuple(torch.randn(M, 1, 64) for _ in range(3)) for _ in range(2))
        for use, run in USES.items():
            for name, attend in (("xfn", xfn.attention), ("softmax by hand", by_hand)):
                if attend is xfn.attention or most >= M:
                    found[use][name].append(peak_bytes(lambda: run(attend, x, t)) / MIB)  # type: ignore[arg-type]  # noqa: B023
    return found


def draw(found: dict[str, dict[str, list[float]]], lengths: Sequence[int], path: Path) -> None:
    matplotlib: Any = importlib.import_module("matplotlib")
    figures: Any = importlib.import_module("matplotlib.figure")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "memory", "font.size": 9}):
        figure = figures.Figure(figsize=(9, 3), layout="constrained")
        for axes, (use, lines) in zip(figure.subplots(1, len(found), sharey=True), found.items(), strict=True):
            axes.plot(lengths, [M * M * 4 / MIB for M in lengths], ":", color="gray", label="one matrix of logits")
            for (name, sizes), colour in zip(lines.items(), ("tab:green", "tab:red"), strict=True):
                axes.plot(lengths[: len(sizes)], sizes, "o-", color=colour, markersize=4, label=name)
            axes.set(title=use, xlabel="length", xscale="log", yscale="log")
            axes.set_xticks(lengths, [str(M) for M in lengths], minor=False)
            axes.grid(linewidth=0.3)
            axes.minorticks_off()
        figure.axes[0].set_ylabel("MiB beyond inputs and results")
        figure.axes[0].legend()
        figure.savefig(path, metadata={"Date": None})


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").split("\n\n")[-1])
    parser.add_argument("--quick", action="store_true", help="short lengths: a smoke test")
    parser.add_argument("--into", type=Path, default=PICTURE, metavar="FILE")
    asked = parser.parse_args(given)
    torch.set_num_threads(1)
    lengths = LENGTHS[:2] if asked.quick else LENGTHS
    found = measured(lengths, MOST)
    print("\n".join(["| MiB | | " + " | ".join(map(str, lengths)) + " |", "|---" * (2 + len(lengths)) + "|"]))
    for use, lines in found.items():
        for name, sizes in lines.items():
            shown = [f"{n:.3g}" for n in sizes] + ["–"] * (len(lengths) - len(sizes))
            print(f"| {use} | {name} | {' | '.join(shown)} |")
    draw(found, lengths, asked.into)


if __name__ == "__main__":
    main()
