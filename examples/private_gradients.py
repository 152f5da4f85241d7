"""Differential privacy: each example's gradient is clipped before they are summed, by one vmap(grad).

    python -m examples.private_gradients [--quick] [--seed N] [--plot FILE]

A small vision transformer learns digits by DP-SGD: a lot is drawn by tossing a coin for each image, no image moves the
sum by more than 1, and noise of deviation σ is added. ε is what the moments of that mechanism allow for δ = 1e-5, as
opacus computes it, which is asked too where it is installed. The promise is 85 % of digits read right, at ε below 8.

    σ noise        q how likely an image is in a lot        α orders of Rényi divergence
"""

import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, func
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

import xfn
from xfn import random
from xfn.parts.position.learned import Learned

from ._shared import Params, Promise, classifier, count, digits, drawing, options, progress, right, save

PROMISE = Promise("digits read right", 0.85)
CONFIG = xfn.Encoder(
    xfn.Dims(model=16, heads=2, length=16),
    position=Learned(),
    patch=xfn.factory.Patch(3, stride=2, padding=1, channels=1),
)
BOUND, SIGMA, DELTA = 1.0, 2.0, 1e-5


def clipped(loss: Callable[..., Tensor], params: Params, x: Tensor, y: Tensor, live: Tensor) -> tuple[Params, Tensor]:
    """The sum of gradients, none longer than the bound, and how long each was."""
    slopes = func.vmap(func.grad(loss), (None, 0, 0))(params, x, y)
    norms = torch.stack([slope.flatten(1).norm(dim=1) for slope in tree_leaves(slopes)]).norm(dim=0)
    shares = live * (BOUND / norms).clamp(max=1.0)
    return tree_map(lambda slope: torch.einsum("b,b...->...", shares, slope), slopes), norms


def noisy(total: Params, key: Tensor) -> Params:
    leaves, spec = tree_flatten(total)
    keys = random.split(key, len(leaves))
    return tree_unflatten(
        [g + SIGMA * BOUND * random.normal(k, g.shape) for g, k in zip(leaves, keys, strict=True)], spec
    )


def spent(q: float, sigma: float, steps: int, delta: float) -> float:
    """ε after so many lots, from the integer moments of the sampled Gaussian mechanism.

    Sources: Mironov, Talwar and Zhang, "Rényi differential privacy of the sampled Gaussian mechanism" (2019); Balle et
    al., "Hypothesis testing interpretations and Rényi differential privacy" (2020).
    """
    found = math.inf
    for alpha in range(2, 64):
        terms = [
            math.log(math.comb(alpha, k)) + (alpha - k) * math.log1p(-q) + k * math.log(q) + k * (k - 1) / 2 / sigma**2
            for k in range(alpha + 1)
        ]
        renyi = steps * torch.tensor(terms, dtype=torch.float64).logsumexp(0).item() / (alpha - 1)
        found = min(found, renyi + math.log1p(-1 / alpha) - math.log(delta * alpha) / (alpha - 1))
    return found


def main(arguments: Sequence[str] | None = None) -> float:
    """Trains in private; the part that is read right."""
    chosen = options(__doc__, arguments)
    split, weights, draws = random.split(random.key(chosen.seed), 3)
    data = digits(split)
    init, apply = classifier(CONFIG, CONFIG.dims.model)
    params = init(weights)
    steps, lot = (4, 32) if chosen.quick else (200, 256)
    q = lot / len(data.x)
    print(f"model     {count(params):,} parameters, {steps} lots of {lot} images, more or less, of {len(data.x)}")

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(apply(params, x), y)

    # A lot has room for what seven deviations let in, so that all have one shape; `live` says which places are taken.
    room = lot + math.ceil(7 * math.sqrt(lot))
    speed, average, lengths = tree_map(torch.zeros_like, params), params, []
    for step in progress(range(steps), "training"):
        toss, noise = random.split(random.fold_in(draws, step))
        taken = random.bernoulli(toss, q, (len(data.x),)).nonzero().flatten()
        rows = F.pad(taken, (0, room - len(taken)))
        total, norms = clipped(loss, params, data.x[rows], data.y[rows], torch.arange(room) < len(taken))
        lengths.append(norms[: len(taken)])
        speed = tree_map(lambda s, g: 0.9 * s + g / lot, speed, noisy(total, noise))
        params = tree_map(lambda w, s: w - 0.3 * s, params, speed)
        average = tree_map(lambda a, w: 0.95 * a + 0.05 * w, average, params)  # costs no privacy, and has less noise

    epsilon = spent(q, SIGMA, steps, DELTA)
    print(f"privacy   ε = {epsilon:.2f} at δ = {DELTA:g}, noise {SIGMA}, lots of {q:.1%}")
    if find_spec("opacus"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            accountant = importlib.import_module("opacus.accountants").RDPAccountant()
        accountant.history = [(SIGMA, q, steps)]
        print(f"          ε = {accountant.get_epsilon(DELTA, alphas=range(2, 64)):.2f} as opacus has it")
    if chosen.plot:
        figure, (panel,) = drawing(4.2, 2.4)
        early, late = torch.cat(lengths[: len(lengths) // 10 + 1]), torch.cat(lengths[-len(lengths) // 10 :])
        for norms, label in ((early, "first lots"), (late, "last lots")):
            panel.hist(norms.clamp(max=20).numpy(), bins=40, range=(0, 20), alpha=0.6, label=label, density=True)
        panel.axvline(BOUND, color="black", linewidth=0.8, linestyle=":")
        panel.set(xlabel="length of an example's gradient", ylabel="density")
        panel.legend(fontsize=7)
        save(figure, chosen.plot)
    return PROMISE.show(right(lambda x: apply(average, x), data), chosen.quick)


if __name__ == "__main__":
    main()
