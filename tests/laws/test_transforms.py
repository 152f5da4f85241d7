"""Every primitive × every case × every complete backend × every transform, against the reference: in float64, and on a
GPU, whose kernels have none, in float32 too."""

import pytest
import torch

from ..cases import Subject, every, follows, tiny
from ..device import DEVICE, gpu
from ..transforms import THIRD, TRACED, TRANSFORMS, Transform

DTYPES = (torch.float64,) if DEVICE.type == "cpu" else (torch.float64, torch.float32)


def asked(subject: Subject, transform: Transform) -> bool:
    """On tiny cases alone: of what is chosen; the third order, which is the reference's; and, of what is chosen alone,
    what traces, whatever the backend."""
    if tiny(subject.case):
        return subject.backend is None or transform not in TRACED
    return subject.backend is not None and transform not in (*THIRD, *TRACED)


ASKED = [
    (subject, transform)
    for subject in every(lambda case: True, (None, "complete"), DTYPES)
    for transform in TRANSFORMS
    if asked(subject, transform)
]
"""A case's backends one behind another, for which the reference is asked once."""


@gpu
@pytest.mark.parametrize(("subject", "transform"), ASKED, ids=lambda value: getattr(value, "__name__", str(value)))
def test_equals_the_reference(subject: Subject, transform: Transform) -> None:
    follows(transform, subject)
