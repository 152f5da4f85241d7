"""Every primitive × every case × every complete backend × every transform, in float64, against the reference."""

import pytest

from ..cases import Subject, agree, subjects, tiny
from ..transforms import THIRD, TRACED, TRANSFORMS, Point, Transform

FEW = (*THIRD, *TRACED)
"""What is run on tiny cases alone: the third order, which is the reference's, and what traces, whatever the backend."""


def point(subject: Subject) -> Point:
    draw = subject.draw
    return Point(draw(0), draw(1), draw(2), draw(3, examples=3), draw(4, examples=3))


@pytest.mark.parametrize("transform", [t for t in TRANSFORMS if t not in FEW], ids=lambda t: t.__name__)
@subjects(backends=("complete",))
def test_equals_the_reference(subject: Subject, transform: Transform) -> None:
    at = point(subject)
    agree(transform(subject, at), transform(subject.oracle, at))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: t.__name__)
@subjects(tiny)
def test_what_is_chosen_equals_the_reference(subject: Subject, transform: Transform) -> None:
    at = point(subject)
    agree(transform(subject, at), transform(subject.oracle, at))


@pytest.mark.parametrize("transform", THIRD, ids=lambda t: t.__name__)
@subjects(tiny, backends=("complete",))
def test_equals_the_reference_to_third_order(subject: Subject, transform: Transform) -> None:
    at = point(subject)
    agree(transform(subject, at), transform(subject.oracle, at))
