"""Activations, each defined once: the functions that ops take by these names.

Example:
    >>> import torch
    >>> squared_relu(torch.tensor([-1.0, 3.0]))
    tensor([0., 9.])
"""

from ._core.activations import gelu as gelu
from ._core.activations import identity as identity
from ._core.activations import leaky_relu as leaky_relu
from ._core.activations import relu as relu
from ._core.activations import sigmoid as sigmoid
from ._core.activations import silu as silu
from ._core.activations import smelu as smelu
from ._core.activations import squared_relu as squared_relu
from ._core.activations import star_relu as star_relu
from ._core.activations import tanh as tanh
