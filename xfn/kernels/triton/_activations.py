"""Activations of ``_core/activations.py`` and their slopes, by name."""

import math

import triton
import triton.language as tl

from ..._core import activations

SHIFT: tl.constexpr = tl.constexpr(activations.SHIFT)
STRETCH: tl.constexpr = tl.constexpr(activations.STRETCH)
BEND: tl.constexpr = tl.constexpr(activations.BEND)
LEAK: tl.constexpr = tl.constexpr(activations.LEAK)
HALF_ROOT: tl.constexpr = tl.constexpr(math.sqrt(0.5))
DENSITY: tl.constexpr = tl.constexpr(1 / math.sqrt(2 * math.pi))


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    """Near zero by its series, where the quotient cancels."""
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    e = tl.exp(-2 * tl.abs(x))
    found = (1 - e) / (1 + e)
    return tl.where(tl.abs(x) < (0.03 if x.dtype == tl.float64 else 0.25), series, tl.where(x < 0, -found, found))


@triton.jit
def activated(x, NAME: tl.constexpr):
    """activation(x), of a tile in the dtype of sums."""
    if NAME == "relu":
        y = tl.where(x <= 0, 0.0, x)
    elif NAME == "leaky_relu":
        y = tl.where(x > 0, x, LEAK * x)
    elif NAME == "gelu":
        y = 0.5 * x * (1 + tl.erf(x * HALF_ROOT))
    elif NAME == "squared_relu":
        y = tl.where(x <= 0, 0.0, x * x)
    elif NAME == "star_relu":
        y = STRETCH * tl.where(x <= 0, 0.0, x * x) - SHIFT
    elif NAME == "smelu":
        y = tl.where(x > BEND, x, tl.where(x <= -BEND, 0.0, (x + BEND) * (x + BEND) * (1 / (4 * BEND))))
    elif NAME == "silu":
        y = x * sigmoid(x)
    elif NAME == "sigmoid":
        y = sigmoid(x)
    elif NAME == "tanh":
        y = tanh(x)
    else:
        tl.static_assert(NAME == "identity")
        y = x
    return y


@triton.jit
def slope(x, NAME: tl.constexpr):
    """The derivative of an activation."""
    if NAME == "relu":
        y = tl.where(x > 0, 1.0, 0.0)
    elif NAME == "leaky_relu":
        y = tl.where(x > 0, 1.0, tl.full(x.shape, LEAK, x.dtype))
    elif NAME == "gelu":
        y = 0.5 * (1 + tl.erf(x * HALF_ROOT)) + x * tl.exp(-0.5 * x * x) * DENSITY
    elif NAME == "squared_relu":
        y = tl.where(x <= 0, 0.0, 2 * x)
    elif NAME == "star_relu":
        y = tl.where(x <= 0, 0.0, 2 * STRETCH * x)
    elif NAME == "smelu":
        y = tl.where(x > BEND, 1.0, tl.where(x <= -BEND, 0.0, (x + BEND) * (1 / (2 * BEND))))
    elif NAME == "silu":
        s = sigmoid(x)
        y = s * (1 + x * (1 - s))
    elif NAME == "sigmoid":
        s = sigmoid(x)
        y = s * (1 - s)
    elif NAME == "tanh":
        t = tanh(x)
        y = 1 - t * t
    else:
        tl.static_assert(NAME == "identity")
        y = tl.full(x.shape, 1.0, x.dtype)
    return y
