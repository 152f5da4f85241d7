"""Second derivatives of a trained transformer: its tangent kernel, its sharpest direction, and who led it astray.

    python -m examples.curvature [--quick] [--seed N] [--plot FILE]

A small vision transformer learns digits of which a tenth have a wrong label. The neural tangent kernel is Jacobians,
by vmap(jacrev); the greatest eigenvalue of the Hessian is that of Hessian-vector products, by jvp(grad) and by
grad(jvp); and how much each example helps others is one conjugate gradient and one jvp. The promise is to find 80 % of
the wrong labels among that fifth of the examples that help least; the picture has how many are found by looking so far.

    B examples        C classes        P parameters, in one vector

Source: Koh and Liang, "Understanding black-box predictions via influence functions" (2017).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, func
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

import xfn
from xfn import random
from xfn.parts.position.learned import Learned

from ._shared import Params, Promise, adam, adam_step, classifier, digits, drawing, one_cycle, options, progress, save

PROMISE = Promise("wrong labels found in a fifth of the examples", 0.8)
CONFIG = xfn.Encoder(xfn.Dims(model=16, heads=2, length=16), position=Learned(), patch=xfn.factory.Patch(2, channels=1))
Map = Callable[[Tensor], Tensor]


def raveled(params: Params) -> tuple[Tensor, Callable[[Tensor], Params]]:
    """All parameters as one vector, and the way back."""
    leaves, spec = tree_flatten(params)
    sizes = [leaf.numel() for leaf in leaves]

    def back(vector: Tensor) -> Params:
        parts = vector.split(sizes)
        return tree_unflatten([part.view_as(leaf) for part, leaf in zip(parts, leaves, strict=True)], spec)

    return torch.cat([leaf.flatten() for leaf in leaves]), back


def train(loss: Callable[..., Tensor], start: Tensor, x: Tensor, y: Tensor, steps: int) -> Tensor:
    w, memory = start, adam(start)
    for step in progress(range(steps), "training"):
        w, memory = adam_step(w, func.grad(loss)(w, x, y), memory, 1e-2 * one_cycle(step, steps))
    return w


def tangent(f: Map, at: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    value, slope = func.jvp(f, (at,), (along,))  # type: ignore[misc]
    return value, slope


def sharpest(product: Map, start: Tensor, steps: int) -> float:
    """The greatest eigenvalue of a symmetric matrix, by its products alone."""
    v = start
    for _ in range(steps):
        v = F.normalize(product(v), dim=0)
    return (v @ product(v)).item()


def solved(product: Map, b: Tensor, steps: int) -> Tensor:
    """x of A x = b for a positive definite A, by conjugate gradients."""
    x, r = torch.zeros_like(b), b
    d, size = r, r @ r
    for _ in range(steps):
        ad = product(d)
        x, r = x + size / (d @ ad) * d, r - size / (d @ ad) * ad
        d, size = r + (r @ r) / size * d, r @ r
    return x


def main(arguments: Sequence[str] | None = None) -> float:
    """Trains, and looks at derivatives; the part of wrong labels that are found."""
    chosen = options(__doc__, arguments)
    split, weights, which, how, other = random.split(random.key(chosen.seed), 5)
    data = digits(split)
    B, steps = (60, 4) if chosen.quick else (1000, 150)
    init, apply = classifier(CONFIG, CONFIG.dims.model)
    start, back = raveled(init(weights))

    def f(w: Tensor, x: Tensor) -> Tensor:
        logits: Tensor = apply(back(w), x)
        return logits

    def each(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(f(w, x), y, reduction="none")

    def loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return each(w, x, y).mean() + 2e-3 * w.square().sum()

    # A tenth of the labels are moved on by 1 to 9.
    x, truth = data.x[:B], data.y[:B]
    wrong = torch.isin(torch.arange(B), random.permutation(which, B)[: B // 10])
    y = torch.where(wrong, (truth + random.randint(how, (B,), 1, 10)) % 10, truth)
    w = train(loss, start, x, y, steps)
    print(f"model     {len(w):,} parameters, {B} images, {int(wrong.sum())} wrong labels")

    # The tangent kernel [B, B] of 64 images, summed over classes.
    jacobian: Tensor = func.vmap(func.jacrev(f), (None, 0))(w, x[:64])
    kernel = torch.einsum("icp,jcp->ij", jacobian, jacobian)
    spectrum = torch.linalg.eigvalsh(kernel).flip(0)
    share = spectrum[:5].sum() / spectrum.sum()
    print(f"kernel    {len(kernel)} × {len(kernel)}, its first 5 eigenvalues {share:.0%} of all")

    # Two ways to nest, one Hessian.
    slope = func.grad(loss)

    def product(v: Tensor) -> Tensor:
        return tangent(lambda w: slope(w, x, y), w, v)[1]

    def again(v: Tensor) -> Tensor:
        found: Tensor = func.grad(lambda w: tangent(lambda w: loss(w, x, y), w, v)[1])(w)
        return found

    v = random.normal(other, w.shape)
    gap = (product(v) - again(v)).norm() / product(v).norm()
    print(f"Hessian   greatest eigenvalue {sharpest(product, v, 3 if chosen.quick else 20):.1f}", end="")
    print(f", jvp(grad) and grad(jvp) {gap:.0e} apart")

    # The Gauss-Newton matrix is the Hessian without what the model itself bends: J' H J, and never negative.
    def gauss_newton(v: Tensor) -> Tensor:
        logits, moved = tangent(lambda w: f(w, x), w, v)
        bent = tangent(func.grad(lambda z: F.cross_entropy(z, y)), logits, moved)[1]
        pulled: Tensor = func.vjp(lambda w: f(w, x), w)[1](bent)[0]
        return pulled + 1e-2 * v

    # An example helps where a step along its gradient makes others' loss less.
    theirs = func.grad(lambda w: each(w, data.asked, data.answers).mean())(w)
    direction = solved(gauss_newton, theirs, 3 if chosen.quick else 20)
    helps = tangent(lambda w: each(w, x, y), w, direction)[1]
    looked = wrong[helps.argsort()]
    found = looked[: B // 5].float().sum() / wrong.sum()

    kept = helps.argsort()[B // 10 :]
    for name, rows in (("all", torch.arange(B)), ("best 90 %", kept), ("no wrong label", (~wrong).nonzero().flatten())):
        fresh = train(loss, start, x[rows], y[rows], steps)
        right = (f(fresh, data.asked).argmax(-1) == data.answers).float().mean()
        print(f"{'accuracy' if name == 'all' else '':<9} {right:.1%} when trained on: {name}")
    if chosen.plot:
        show(looked, each(w, x, y), wrong, chosen.plot)
    return PROMISE.show(found.item(), chosen.quick)


def show(looked: Tensor, losses: Tensor, wrong: Tensor, path: Any) -> None:
    figure, (panel,) = drawing(4.2, 2.4)
    part = torch.linspace(0, 1, len(looked))
    by_loss = wrong[losses.argsort(descending=True)]
    for name, order in (("influence", looked), ("loss", by_loss)):
        panel.plot(part, order.cumsum(0) / wrong.sum(), label=name)
    panel.plot(part, part, color="gray", linewidth=0.8, linestyle=":", label="chance")
    panel.set(xlabel="looked at", ylabel="wrong labels found")
    panel.legend(fontsize=7)
    save(figure, path)


if __name__ == "__main__":
    main()
