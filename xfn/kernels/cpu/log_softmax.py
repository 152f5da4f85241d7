"""The logarithm of softmax in C++: see xfn/csrc/cpu/soften.h."""

from functools import partial

from . import softmax
from .library import detail, swift
from .rows import certain as certain
from .rows import supports as supports

DETAIL, SWIFT = detail(), swift("log_softmax")

forward = partial(softmax.forward, logarithm=True)
backward = partial(softmax.backward, logarithm=True)
