"""A vision transformer from a config, trained on the 8 × 8 digits of scikit-learn with torch's own optimiser.

    python -m examples.microvit [--quick] [--seed N] [--plot FILE]

Patches of 3 × 3 pixels, each over the edge of the next, are its 16 tokens; images move by at most a pixel while it
learns. It promises to read 96 % of 360 digits that it has not seen; the picture has what it takes them for.
"""

from collections.abc import Sequence

import torch

import xfn
from xfn import random
from xfn.parts.position.learned import Learned

from ._shared import Promise, classifier, count, digits, drawing, learn, options, save

PROMISE = Promise("digits read right", 0.96)

CONFIG = xfn.Encoder(
    xfn.Dims(model=64, heads=4, length=16),
    layers=2,
    position=Learned(),
    patch=xfn.factory.Patch(3, stride=2, padding=1, channels=1),
)


def main(arguments: Sequence[str] | None = None) -> float:
    """Trains, and asks; the part that is read right."""
    chosen = options(__doc__, arguments)
    torch.manual_seed(chosen.seed)  # modules draw their keys from torch's generator
    split, weights, steps = random.split(random.key(chosen.seed), 3)
    data = digits(split)
    net = xfn.nn.Module(classifier(CONFIG, CONFIG.dims.model), weights)
    print(f"model     {count(net.params.tree()):,} parameters in {CONFIG.layers} layers, to learn {len(data.x)} images")
    found = learn(net, data, steps, 5 if chosen.quick else 700)

    # Rows are digits, columns what they were taken for.
    with torch.no_grad():
        taken = net(data.asked).argmax(-1)
    table = torch.bincount(10 * data.answers + taken, minlength=100).view(10, 10)
    wrong = [(int(n), i, j) for i, row in enumerate(table.tolist()) for j, n in enumerate(row) if i != j and n]
    for n, i, j in sorted(wrong, reverse=True)[:3]:
        print(f"mistakes  {n} × {i} taken for {j}")
    if chosen.plot:
        figure, (panel,) = drawing(3.4, 3.2)
        panel.imshow(table.log1p().numpy(), cmap="viridis_r")
        for i, row in enumerate(table.tolist()):
            for j, n in enumerate(row):
                if n:
                    panel.text(j, i, n, ha="center", va="center", fontsize=6, color="white" if n > 5 else "black")
        panel.set(xticks=range(10), yticks=range(10), xlabel="taken for", ylabel="digit")
        save(figure, chosen.plot)
    return PROMISE.show(found, chosen.quick)


if __name__ == "__main__":
    main()
