"""Root mean square normalisation in C++: layer normalisation without a mean and a bias."""

from functools import partial

from . import layer_norm
from .library import detail, swift
from .rows import certain as certain
from .rows import supports as supports

DETAIL, SWIFT = detail(), swift("rms_norm")

forward = partial(layer_norm.forward, centered=False)
backward = partial(layer_norm.backward, centered=False)
