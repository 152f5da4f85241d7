"""The logarithm of softmax in Triton."""

from functools import partial

from . import softmax
from ._launch import supports as supports

forward = partial(softmax.forward, logarithm=True)
backward = partial(softmax.backward, logarithm=True)
