"""Every primitive × every case × every complete backend × every transform, against the reference: in float64, and on a
GPU, whose kernels have none, in float32 too."""

import pytest
import torch

from ..cases import Subject, follows, subjects, tiny
from ..device import DEVICE
from ..transforms import THIRD, TRACED, TRANSFORMS, Point, Transform

DTYPES = (torch.float64,) if DEVICE.type == "cpu" else (torch.float64, torch.float32)
FEW = (*THIRD, *TRACED)
"""What is run on tiny cases alone: the third order, which is the reference's, and what traces, whatever the backend."""


def point(subject: Subject) -> Point:
    draw = subject.draw
    return Point(draw(0), draw(1), draw(2), draw(3, examples=3), draw(4, examples=3))


@pytest.mark.parametrize("transform", [t for t in TRANSFORMS if t not in FEW], ids=lambda t: t.__name__)
@subjects(backends=("complete",), dtypes=DTYPES)
def test_equals_the_reference(subject: Subject, transform: Transform) -> None:
    follows(transform, subject, point(subject))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: t.__name__)
@subjects(tiny, dtypes=DTYPES)
def test_what_is_chosen_equals_the_reference(subject: Subject, transform: Transform) -> None:
    follows(transform, subject, point(subject))


@pytest.mark.parametrize("transform", THIRD, ids=lambda t: t.__name__)
@subjects(tiny, backends=("complete",), dtypes=DTYPES)
def test_equals_the_reference_to_third_order(subject: Subject, transform: Transform) -> None:
    follows(transform, subject, point(subject))
