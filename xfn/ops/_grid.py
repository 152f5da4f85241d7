"""Tokens that lie on a grid, row by row, as images and back."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._core.errors import ShapeError


def placed(M: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of M tokens; without a grid they are a square."""
    rows, columns = (math.isqrt(M),) * 2 if grid is None else grid
    if rows * columns != M or rows < 0:
        instead = "write grid=(rows, columns)" if grid is None else f"it has {rows * columns} places"
        raise ShapeError(f"M={M} tokens do not lie on a grid of {rows} x {columns}: {instead}")
    return rows, columns


def on_images(f: Callable[[Tensor], Tensor], x: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """``f`` of images ``[n, E, rows, columns]``, on tokens ``[..., M, E]``."""
    planes = x.unflatten(-2, placed(x.shape[-2], grid)).movedim(-1, -3)
    y = f(planes.reshape(math.prod(planes.shape[:-3]), *planes.shape[-3:]))
    back: Tensor = y.reshape(*planes.shape[:-3], *y.shape[-3:]).movedim(-3, -1).flatten(-3, -2)
    return back


def each(x: Tensor, weight: Tensor, bias: Tensor | None, grid: tuple[int, int] | None, dilation: int = 1) -> Tensor:
    """Each feature of ``x [..., M, F]`` by its own convolution ``weight [F, k, k]``, zeros around the grid, k odd."""
    k, F = weight.shape[-1], weight.shape[0]
    convolve = lambda planes: torch.nn.functional.conv2d(
        planes, weight.unsqueeze(1), bias, padding=dilation * (k // 2), dilation=dilation, groups=F
    )
    return on_images(convolve, x, grid)
