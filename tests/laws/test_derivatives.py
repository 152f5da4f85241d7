"""Second derivatives in all four nestings equal differences of the gradient, and gradients differences of the value.

torch's own ``layer_norm`` is wrong in two of the nestings, and so is any op whose forward mode does not nest; so
the oracle here is no transform at all.
"""

import pytest
import torch
from torch import Tensor, func

from ..cases import Subject, agree, filled, subjects, tiny
from ..transforms import Tensors, dot, loss

STEP = 1e-4


def moved(x: Tensors, t: Tensors, step: float) -> Tensors:
    return tuple(v + step * u for v, u in zip(x, t, strict=True))


def difference(f: object, x: Tensors, t: Tensors) -> Tensors:
    """df along t, by Richardson's extrapolation of central differences: exact to O(STEP⁴)."""

    def central(step: float) -> list[Tensor]:
        return [(a - b) / (2 * step) for a, b in zip(f(*moved(x, t, step)), f(*moved(x, t, -step)), strict=True)]  # type: ignore[operator]

    return tuple((4 * fine - coarse) / 3 for fine, coarse in zip(central(STEP / 2), central(STEP), strict=True))


@subjects(filled, backends=("each",))
def test_first_derivatives(subject: Subject) -> None:
    x, t = subject.draw(0), subject.draw(1)
    want = difference(subject, x, t)
    agree(func.jvp(subject, x, t)[1], want, 1e-9)
    cotangents = tuple(y.cos() for y in subject(*x))
    agree(dot(func.vjp(subject, *x)[1](cotangents), t), dot(cotangents, want), 1e-9)


@subjects(filled, backends=("each",))
def test_second_derivatives_in_four_nestings(subject: Subject) -> None:
    x, t = subject.draw(0), subject.draw(1)
    every, scalar = tuple(range(len(x))), loss(subject)
    slope = func.grad(scalar, every)
    want = difference(slope, x, t)
    agree(func.jvp(slope, x, t)[1], want, 1e-8)
    agree(func.grad(lambda *x: func.jvp(scalar, x, t)[1], every)(*x), want, 1e-8)
    agree(func.grad(lambda *x: dot(slope(*x), t), every)(*x), want, 1e-8)
    agree(func.jvp(lambda *x: func.jvp(scalar, x, t)[1], x, t)[1], dot(want, t), 1e-8)


@subjects(tiny)
def test_the_tape_sees_through_levels_to_fourth_order(subject: Subject) -> None:
    """The gradient, by autograd's own tape, of a tangent of a tangent of a gradient."""

    def fourth(f: Subject) -> Tensors:
        leaves = tuple(v.requires_grad_() for v in subject.draw())
        along = lambda g: lambda *x: func.jvp(g, x, subject.draw(1))[1]
        y = along(along(func.grad(loss(f), tuple(range(len(leaves))))))(*leaves)
        return torch.autograd.grad(dot(y, subject.draw(2)), leaves)

    agree(fourth(subject), fourth(subject.oracle))


@pytest.mark.filterwarnings("ignore:Input #")
@subjects(tiny, backends=("each",))
def test_torch_checks_the_gradients_too(subject: Subject) -> None:
    x = tuple(v.requires_grad_() for v in subject.draw())
    assert torch.autograd.gradcheck(
        subject, x, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(
        subject, x, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True
    )
