"""The logarithm of softmax in C++: see xfn/csrc/cpu/soften.h."""

from functools import partial

from . import softmax
from .rows import DETAIL as DETAIL
from .rows import certain as certain
from .rows import supports as supports

forward = partial(softmax.forward, logarithm=True)
backward = partial(softmax.backward, logarithm=True)
