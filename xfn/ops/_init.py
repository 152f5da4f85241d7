"""What initialisers draw. Everything is made from the key, so that ``vmap`` of an initialiser gives parameters that
own their storage, on the device of the key."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import random
from .._core.philox import check_key

Draw = Callable[..., Tensor]


def zeros(key: Tensor, *shape: int, dtype: torch.dtype) -> Tensor:
    check_key(key)
    return key.new_zeros(shape, dtype=dtype)


def ones(key: Tensor, *shape: int, dtype: torch.dtype) -> Tensor:
    check_key(key)
    return key.new_ones(shape, dtype=dtype)


def even(key: Tensor, *shape: int, bound: float, dtype: torch.dtype) -> Tensor:
    """Even in ±bound."""
    return random.uniform(key, shape, -bound, bound, dtype=dtype)


def fan_in(key: Tensor, *shape: int, dtype: torch.dtype) -> Tensor:
    """Even in ±1/√n for ``[…, n]`` inputs, as ``torch.nn.Linear`` draws."""
    return even(key, *shape, bound=1 / math.sqrt(max(1, shape[-1])), dtype=dtype)


def normal(key: Tensor, *shape: int, std: float, dtype: torch.dtype) -> Tensor:
    """Normal, of mean 0."""
    return random.normal(key, shape, dtype=dtype) * std
