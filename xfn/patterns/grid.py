"""Patterns over a grid of tokens, such as the patches of an image, which is flattened row by row.

Token (i, j) of a grid of h rows and w columns has the number i · w + j, and so on in more dims. Distances are
taken per dim, ``[h, h]`` and ``[w, w]``, and only what they add up to is as large as the pattern.
"""

import operator
from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from .._core.kinds import check_number, is_integer


def local_nd_distance(*sizes: int, p: float = 2.0, weights: Sequence[float] | None = None) -> Tensor:
    """How far apart two tokens of a grid are: ``(Σ_d |weights_d · (a_d − b_d)|ᵖ)^(1/p)``.

    Args:
        sizes: of the grid, one per dim.
        p: of the norm; 0 counts the dims in which they differ, infinity takes the largest difference.
        weights: one number per dim; by default 1.

    Returns:
        float32 ``[n, n]``, n the product of the sizes.

    Raises:
        TypeError, ValueError: sizes that are no positive integers, p < 0, or weights for other dims.

    Example:
        >>> local_nd_distance(2, 2, p=1)
        tensor([[0., 1., 1., 2.],
                [1., 0., 2., 1.],
                [1., 2., 0., 1.],
                [2., 1., 1., 0.]])
    """
    total = _powers(sizes, p, weights)
    return (total ** (1 / p) if 0 < p < torch.inf else total).float()


def local_nd_gaussian(*sizes: int, sigma: float = 1.0) -> Tensor:
    """How likely near tokens of a grid are, exp(−d² / 2σ²) of their Euclidean distance d; it is not normalised.

    Args:
        sizes: of the grid, one per dim.
        sigma: σ, in tokens.

    Returns:
        float32 ``[n, n]``.

    Raises:
        TypeError, ValueError: sizes that are no positive integers, or σ ≤ 0.

    Example:
        >>> local_nd_gaussian(3)
        tensor([[1.0000, 0.6065, 0.1353],
                [0.6065, 1.0000, 0.6065],
                [0.1353, 0.6065, 1.0000]])
    """
    if check_number("sigma", sigma) <= 0:
        raise ValueError(f"sigma={sigma} must be positive")
    return (_powers(sizes, 2) / (-2 * sigma**2)).exp().float()


def local_nd(*sizes: int, distance: float, p: float = 2.0) -> Tensor:
    """Tokens of a grid see those that are nearer than ``distance``: d < distance, which itself is too far.

    Args:
        sizes: of the grid, one per dim.
        distance: in tokens.
        p: of the norm, as in :func:`local_nd_distance`.

    Returns:
        bool ``[n, n]``.

    Raises:
        TypeError, ValueError: as :func:`local_nd_distance`.

    Example:
        >>> local_nd(4, distance=2).long()
        tensor([[1, 1, 0, 0],
                [1, 1, 1, 0],
                [0, 1, 1, 1],
                [0, 0, 1, 1]])
    """
    bound = max(check_number("distance", distance), 0.0)
    return _powers(sizes, p) < (bound**p if 0 < p < torch.inf else bound)


def axial_nd(*sizes: int) -> Tensor:
    """Tokens of a grid see those on one line with them: at most one coordinate differs (Ho et al., 2019).

    Args:
        sizes: of the grid, one per dim.

    Returns:
        bool ``[n, n]``.

    Raises:
        TypeError, ValueError: sizes that are no positive integers.

    Example:
        >>> axial_nd(2, 2).long()
        tensor([[1, 1, 1, 0],
                [1, 1, 0, 1],
                [1, 0, 1, 1],
                [0, 1, 1, 1]])
    """
    return _powers(sizes, 0) < 2


def local_2d_distance(h: int, w: int, p: float = 2.0) -> Tensor:
    """As :func:`local_nd_distance`, of h rows of w tokens.

    Example:
        >>> local_2d_distance(1, 3)[0]
        tensor([0., 1., 2.])
    """
    return local_nd_distance(h, w, p=p)


def horizontal_axial_2d_distance(h: int, w: int, p: float = 2.0) -> Tensor:
    """As :func:`local_nd_distance`, of h rows of w tokens, in rows alone: 0 along each row.

    Example:
        >>> horizontal_axial_2d_distance(2, 2)[0]
        tensor([0., 0., 1., 1.])
    """
    return local_nd_distance(h, w, p=p, weights=(1, 0))


def vertical_axial_2d_distance(h: int, w: int, p: float = 2.0) -> Tensor:
    """As :func:`local_nd_distance`, of h rows of w tokens, in columns alone: 0 along each column.

    Example:
        >>> vertical_axial_2d_distance(2, 2)[0]
        tensor([0., 1., 0., 1.])
    """
    return local_nd_distance(h, w, p=p, weights=(0, 1))


def local_2d_gaussian(h: int, w: int, sigma: float = 1.0) -> Tensor:
    """As :func:`local_nd_gaussian`, of h rows of w tokens.

    Example:
        >>> local_2d_gaussian(1, 3)[0]
        tensor([1.0000, 0.6065, 0.1353])
    """
    return local_nd_gaussian(h, w, sigma=sigma)


def local_2d(h: int, w: int, distance: float, p: float = 2.0) -> Tensor:
    """As :func:`local_nd`, of h rows of w tokens.

    Example:
        >>> local_2d(3, 3, distance=2)[4].long().reshape(3, 3)
        tensor([[1, 1, 1],
                [1, 1, 1],
                [1, 1, 1]])
    """
    return local_nd(h, w, distance=distance, p=p)


def axial_2d(h: int, w: int) -> Tensor:
    """As :func:`axial_nd`, of h rows of w tokens.

    Example:
        >>> axial_2d(3, 3)[0].long().reshape(3, 3)
        tensor([[1, 1, 1],
                [1, 0, 0],
                [1, 0, 0]])
    """
    return axial_nd(h, w)


def dilated_2d(h: int, w: int, k: int = 2) -> Tensor:
    """Tokens of a grid see every k-th row's every k-th token: both distances are multiples of k.

    Args:
        h, w: rows, and tokens in each.
        k: the step; at least 1.

    Returns:
        bool ``[h · w, h · w]``.

    Raises:
        TypeError, ValueError: sizes or a step that are no positive integers.

    Example:
        >>> dilated_2d(3, 3)[0].long().reshape(3, 3)
        tensor([[1, 0, 1],
                [0, 0, 0],
                [1, 0, 1]])
    """
    _check("k", k)
    return _alike((h, w), lambda i: i % k)


def swin(h: int, w: int, window: int, shift: int = 0) -> Tensor:
    """Tokens of a grid see those in the same square window (Liu et al., 2021).

    Windows begin at the rows and columns ``shift``, ``shift + window``, …; with a shift there is one more of them
    each way, and those at the edges are smaller: what a cyclic shift wraps around stays apart.

    Args:
        h, w: rows, and tokens in each.
        window: rows and columns of a window.
        shift: where windows begin, below ``window``.

    Returns:
        bool ``[h · w, h · w]``.

    Raises:
        TypeError, ValueError: sizes that are no positive integers, or a shift outside [0, window).

    Example:
        >>> swin(4, 4, window=2, shift=1)[5].long().reshape(4, 4)
        tensor([[0, 0, 0, 0],
                [0, 1, 1, 0],
                [0, 1, 1, 0],
                [0, 0, 0, 0]])
    """
    _check("window", window)
    if not is_integer(shift) or not 0 <= shift < window:
        raise ValueError(f"shift={shift} must be an integer from 0 to window − 1 = {window - 1}")
    return _alike((h, w), lambda i: (i - shift).div(window, rounding_mode="floor"))


def _powers(sizes: Sequence[int], p: float, weights: Sequence[float] | None = None) -> Tensor:
    """Σ_d |weights_d · (a_d − b_d)|ᵖ in float64; how many differ for p = 0, the largest one for p = ∞."""
    if isinstance(p, Tensor) or not p >= 0:
        raise ValueError(f"p={p} is no norm: it must be a number from 0 to infinity")
    if weights is not None and len(weights) != len(sizes):
        raise ValueError(f"there are {len(sizes)} sizes, but {len(weights)} weights")

    def power(d: int) -> Callable[[Tensor], Tensor]:
        weight = 1.0 if weights is None else check_number("a weight", weights[d])
        return lambda i: (weight * (i[:, None] - i).double()).abs()

    parts = [power(d)(axis) for d, axis in enumerate(_axes(sizes))]
    if p == torch.inf:
        return reduce(lambda a, b: _outer(torch.maximum, a, b), parts)
    return reduce(lambda a, b: _outer(operator.add, a, b), [x.bool().double() if p == 0 else x**p for x in parts])


def _alike(sizes: Sequence[int], group: Callable[[Tensor], Tensor]) -> Tensor:
    """True where two tokens are in one group along every dim."""
    parts = [group(axis)[:, None] == group(axis) for axis in _axes(sizes)]
    return reduce(lambda a, b: _outer(operator.and_, a, b), parts)


def _outer(op: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """``[m, m]`` and ``[n, n]`` as ``[m · n, m · n]``: of tokens that each have a place in both."""
    n = a.shape[0] * b.shape[0]
    return op(a[:, None, :, None], b[:, None, :]).reshape(n, n)


def _axes(sizes: Sequence[int]) -> list[Tensor]:
    if not sizes:
        raise ValueError("a grid has at least one size")
    for size in sizes:
        _check("a size", size)
    return [torch.arange(size) for size in sizes]


def _check(name: str, value: object) -> None:
    if isinstance(value, Tensor) or not is_integer(value):
        raise TypeError(f"{name} is an integer, but got {value!r}")
    if value < 1:  # type: ignore[operator]
        raise ValueError(f"{name} must be at least 1, but got {value}")
