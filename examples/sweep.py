"""Architectures from JSON: each of them built, counted, trained on digits, and put in a table.

    python -m examples.sweep [--quick] [--seed N] [--plot FILE] [--json FILE]

What changes from line to line is data, not code: a list of changes to one dict, which ``xfn.from_dict`` turns into
configs, and refuses in one sentence where a part cannot do what it is asked. The promise is that the best of them reads
95 % of 360 digits that it has not seen; the picture has how many each reads, over what it costs.
"""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import xfn
from xfn import random

from ._shared import Promise, classifier, digits, drawing, learn, options, save

PROMISE = Promise("digits read right by the best", 0.95)

BASE = """{
    "dims": {"model": 48, "heads": 4, "length": 16}, "layers": 2, "position": {"name": "learned"},
    "patch": {"kernel": 3, "stride": 2, "padding": 1, "channels": 1}
}"""
CHANGES = """[
    {},
    {"attention": {"name": "linformer", "rank": 4}},
    {"attention": {"name": "nystrom", "landmarks": 4}},
    {"attention": {"name": "favor"}},
    {"attention": {"name": "fourier_mix"}},
    {"attention": {"name": "pooling"}, "feedforward": {"name": "conv_mlp"}},
    {"attention": {"name": "sparse", "pattern": "axial_2d", "numbers": {"h": 4, "w": 4}}},
    {"position": {"name": "rotary"}, "feedforward": {"name": "swiglu"}, "residual": {"name": "post"}},
    {"attention": {"name": "linformer"}, "causal": true},
    {"attention": {"name": "linfromer"}}
]"""


def main(arguments: Sequence[str] | None = None) -> float:
    """Builds and trains them all; what the best reads right."""
    chosen = options(__doc__, arguments, json={"type": Path, "help": "a list of changes to try instead"})
    split, weights, steps = random.split(random.key(chosen.seed), 3)
    data = digits(split)

    points: list[tuple[float, float, str]] = []
    print(f"{'change':<24}{'parameters':>11}{'MFLOPs':>8}{'right':>8}")
    for change in json.loads(chosen.json.read_text() if chosen.json else CHANGES):
        name = ", ".join(v["name"] if isinstance(v, dict) else k for k, v in change.items()) or "as it is"
        try:
            config: Any = xfn.from_dict(json.loads(BASE) | change)
            xfn.build(config)
        except (TypeError, ValueError, KeyError) as error:
            print(f"{name:<24} refused: {textwrap.shorten(error.args[0], 90, placeholder=' …')}")
            continue
        torch.manual_seed(chosen.seed)
        net = xfn.nn.Module(classifier(config, config.dims.model), weights)
        total = xfn.factory.costs(config, image=(8, 8)).total
        found = learn(net, data, steps, 3 if chosen.quick else 200)
        points.append((total.flops / 1e6, found, name))
        print(f"{name:<24}{total.parameters:>11,}{total.flops / 1e6:>8.2f}{found:>8.1%}")

    if chosen.plot:
        figure, (panel,) = drawing(4.6, 2.8)
        for cost, found, name in points:
            panel.plot(cost, found, "o", label=name)
        panel.set(xlabel="MFLOPs of a digit", ylabel="read right")
        panel.legend(fontsize=6)
        save(figure, chosen.plot)
    return PROMISE.show(max(found for _, found, _ in points), chosen.quick)


if __name__ == "__main__":
    main()
