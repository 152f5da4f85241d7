"""Patches of an image, each mapped to a vector: a convolution, whose pixels become tokens.

    y[m, e] = bias[e] + Σ weight[e, c, i, j] · x[c, stride · row(m) + i − padding, stride · column(m) + j − padding]

Source: Dosovitskiy et al., "An image is worth 16×16 words" (2021); with overlap, Yu et al., "MetaFormer" (2022).
"""

import math
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from .. import random
from .._core.case import Case
from .._core.errors import ShapeError
from .._core.kinds import check_tensors, is_integer
from .._core.params import taken, tree
from .._core.shapes import Signature
from ._init import even
from .fused_linear import affine

SIGNATURE = Signature.parse("x C h w, weight E C i j, bias? E -> y M E")
TOKENS = Signature.parse("x M C -> y M E")
Pair = int | tuple[int, int]


class Patch(TypedDict):
    """weight ``[E, C, i, j]``, bias ``[E]``."""

    weight: Tensor
    bias: NotRequired[Tensor]


def init_patch(
    key: Tensor, channels: int, dim: int, kernel: Pair, bias: bool = True, *, dtype: torch.dtype = torch.float32
) -> Patch:
    """Parameters of :func:`patch`, even in ±1/√(C i j), as ``torch.nn.Conv2d`` draws them.

    Args:
        key: what they are drawn with; they are on its device.
        channels: C.
        dim: E.
        kernel: i and j, the height and width of a patch, or one number for both.
        bias: whether there is one.
        dtype: of the parameters.

    Returns:
        ``{"weight": [E, C, i, j], "bias": [E]}``.

    Example:
        >>> init_patch(random.key(0), 3, 8, 16)["weight"].shape
        torch.Size([8, 3, 16, 16])
    """
    shape = (dim, channels, *_pair("kernel", kernel, 1))
    bound = 1 / math.sqrt(max(1, math.prod(shape[1:])))
    weight = even(random.fold_in(key, 0), *shape, bound=bound, dtype=dtype)
    if not bias:
        return {"weight": weight}
    return {"weight": weight, "bias": even(random.fold_in(key, 1), dim, bound=bound, dtype=dtype)}


def patch(params: Patch, x: Tensor, stride: Pair | None = None, padding: Pair = 0, grid: Pair | None = None) -> Tensor:
    """Each patch of an image, mapped to a token; row by row.

    Args:
        params: ``{"weight": [E, C, i, j], "bias": [E]}``; without the bias, nothing is added.
        x: an image ``[..., C, h, w]``; with a grid, its pixels as tokens ``[..., M, C]``, row by row.
        stride: from patch to patch, one number or (down, right); by default the patches' own size, so that they tile.
        padding: zeros around the image, one number or (above and below, left and right).
        grid: (h, w) of x that comes as tokens, or one number for both; an image has none.

    Returns:
        ``[..., M, E]`` with M = h' w' and h' = ⌊(h + 2 padding − i) / stride⌋ + 1, w' likewise.

    Raises:
        ShapeError, ValueError, TypeError: parameters or x are not of these names, shapes and dtypes, or the image is
            smaller than a patch.

    Examples:
        >>> params = init_patch(random.key(0), 3, 8, 4)
        >>> patch(params, torch.ones(3, 12, 20)).shape
        torch.Size([15, 8])

        Smaller patches of what came out, which overlap:

        >>> x = patch(params, torch.ones(2, 3, 12, 20))
        >>> patch(init_patch(random.key(1), 8, 16, 3), x, stride=2, padding=1, grid=(3, 5)).shape
        torch.Size([2, 6, 16])
    """
    check_tensors({"x": x})
    t, sizes, _ = taken("patch", SIGNATURE, params, {"x": x if grid is None else _image(x, grid)})
    kernel = sizes["i"], sizes["j"]
    step, around = kernel if stride is None else _pair("stride", stride, 1), _pair("padding", padding, 0)
    for letter, size, least, pad in zip("hw", (sizes["h"], sizes["w"]), kernel, around, strict=True):
        if size + 2 * pad < least:
            raise ShapeError(f"x [..., C, h, w] has {letter}={size}, padding is {pad}, but a patch has {least}")
    x, weight, bias = t["x"], t["weight"], t.get("bias")
    if step == kernel and around == (0, 0):
        return affine(_tiles(x, *kernel), weight.flatten(1), bias)
    batch = x.shape[:-3]
    flat = x.reshape(math.prod(batch), *x.shape[-3:])
    y: Tensor = torch.nn.functional.conv2d(flat, weight, bias, step, around).flatten(-2).mT
    return y.reshape(*batch, *y.shape[-2:])


def _tiles(x: Tensor, i: int, j: int) -> Tensor:
    """``[..., C, h, w]`` to ``[..., M, C i j]``, whose product is faster than a convolution."""
    h, w = x.shape[-2] // i, x.shape[-1] // j
    tiles: Tensor = x[..., : h * i, : w * j].unflatten(-1, (w, j)).unflatten(-3, (h, i))  # [..., C, h', i, w', j]
    return tiles.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)


def _image(x: Tensor, grid: Pair) -> Tensor:
    """Tokens as an image."""
    h, w = _pair("grid", grid, 0)
    sizes, _ = TOKENS.check({"x": x})
    if sizes["M"] != h * w:
        raise ShapeError(f"x [..., M, C] has M={sizes['M']} tokens, but a grid of {h} × {w} has {h * w}")
    image: Tensor = x.mT.unflatten(-1, (h, w))
    return image


def _pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2 or not all(is_integer(n) and not isinstance(n, Tensor) and n >= least for n in pair):
        raise ValueError(f"{name}={value!r} must be one or two integers from {least} on")
    return pair


def reference(params: Patch, x: Tensor, stride: Pair | None, padding: Pair, grid: Pair | None) -> Tensor:
    """The specification, in plain torch."""
    weight = params["weight"]
    if grid is not None:
        x = x.unflatten(-2, _pair("grid", grid, 0)).movedim(-1, -3)
    (i, j), (above, left) = weight.shape[-2:], _pair("padding", padding, 0)
    down, right = _pair("stride", stride or (i, j), 1)
    x = torch.nn.functional.pad(x, (left, left, above, above))
    rows = torch.arange(0, x.shape[-2] - i + 1, down)[:, None] + torch.arange(i)
    columns = torch.arange(0, x.shape[-1] - j + 1, right)[:, None] + torch.arange(j)
    patches = x[..., rows[:, :, None, None], columns]  # [..., C, h', i, w', j]
    y: Tensor = torch.einsum("...cviuj,ecij->...vue", patches, weight).flatten(-3, -2)
    return y + params["bias"] if "bias" in params else y


def _case(
    name: str, names: str, shapes: str, stride: Pair | None = None, padding: Pair = 0, grid: Pair | None = None,
    tags: str = "", **sizes: int,
) -> Case:  # fmt: skip
    def call(x: Tensor, *rest: Tensor, backend: str | None = None) -> tuple[Tensor]:
        params = tree(dict(zip(names.split(), rest, strict=True)))
        f = reference if backend == "reference" else patch
        return (f(params, x, stride, padding, grid),)  # type: ignore[arg-type]

    given = dict(zip(("x", *names.split()), shapes.split(","), strict=True))
    sizes = {"B": 2, "C": 2, "h": 4, "w": 6, "E": 3, "i": 2, "j": 2, **sizes}
    return Case(name, call, given, sizes, frozenset(tags.split()))


CASES = (
    _case("tiles", "weight bias", "C h w,E C i j,E", tags="tiny", C=1, h=2, w=4, E=2),
    _case("tiles of a batch", "weight", "B C h w,E C i j", h=5),
    _case("overlap", "weight bias", "B C h w,E C i j,E", (2, 1), (1, 2), i=3),
    _case("overlap of one", "weight", "C h w,E C i j", 1, tags="tiny", C=1, h=2, w=3, E=2),
    _case("tokens", "weight bias", "B M C,E C i j,E", 1, 0, (2, 3), M=6),
    _case("no images", "weight bias", "B C h w,E C i j,E", tags="empty", B=0),
)
