"""Pictures of patterns, biases, layouts and weights: queries from top to bottom, keys from left to right, a square per
head.

matplotlib draws them, and is imported when the first one is drawn: ``pip install xfn[plot]``.
"""

import importlib
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._core.errors import ShapeError
from .bias import Bias
from .layout import Layout
from .ops.attention import attention

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 64
"""Tiles are ruled where there are no more than this many along a side."""


def matrix(thing: Tensor | Bias | Layout, M: int | None = None, N: int | None = None) -> Tensor:
    """What a picture shows, as numbers: 1 where a mask allows, what a bias adds, and −∞ where either hides.

    Args:
        thing: a pattern, boolean or floating ``[M, N]`` or ``[H, M, N]``, a bias, or a layout.
        M, N: the lengths, which a bias does not know by itself; N is M unless given.

    Returns:
        float32 ``[H, M, N]``.

    Raises:
        TypeError: nothing of the kind, or a bias without lengths.
        ShapeError: a tensor of other rank.

    Example:
        >>> matrix(torch.eye(2).bool())
        tensor([[[1., -inf],
                 [-inf, 1.]]])
    """
    if isinstance(thing, Bias):
        if M is None:
            raise TypeError("a bias has no lengths of its own: say how many queries and keys to draw, as in M=64, N=64")
        shown = thing.materialize(M, M if N is None else N)
    else:
        found = thing.to_mask() if isinstance(thing, Layout) else thing
        if not isinstance(found, Tensor):
            raise TypeError(f"a picture shows a tensor, a bias or a layout, but got {type(thing).__name__}")
        shown = torch.where(found, 1.0, -torch.inf) if found.dtype == torch.bool else found
    shown = shown.detach().float().cpu()
    shown = shown[None] if shown.dim() == 2 else shown
    if shown.dim() != 3:
        raise ShapeError(f"a picture shows [M, N] or [H, M, N], but got {list(shown.shape)}: choose one example")
    return shown


def draw(
    thing: Tensor | Bias | Layout,
    M: int | None = None,
    N: int | None = None,
    *,
    title: str = "",
    query: int | None = None,
    grid: tuple[int, int] | None = None,
) -> "Figure":
    """A picture of who sees whom, and beside it what one query sees of an image.

    Args:
        thing: what :func:`matrix` takes; the tiles of a layout are ruled.
        M, N: the lengths, for a bias.
        title: what stands above.
        query: the number of a query, for the second picture.
        grid: rows and columns that the keys are folded into, for the second picture.

    Returns:
        A matplotlib figure, which :func:`save` writes to a file.

    Raises:
        ImportError: there is no matplotlib.
        TypeError, ShapeError: as :func:`matrix`; a query without a grid, or a grid of other size.
        IndexError: there is no such query.

    Example:
        >>> from xfn import patterns
        >>> figure = draw(patterns.axial_2d(4, 6), title="axial", query=9, grid=(4, 6))
        >>> [axes.get_title() for axes in figure.axes]
        ['axial', 'query 9']
    """
    shown = matrix(thing, M, N)
    views: list[tuple[str, Tensor, bool]] = []
    for h, head in enumerate(shown):
        views.append((title if len(shown) == 1 else f"{title} head {h}".strip(), head, False))
        if query is not None or grid is not None:
            views.append((f"query {query}", _folded(head, query, grid), True))

    figure: Figure = _matplotlib("figure").Figure(figsize=(3.2 * len(views), 3.2), layout="constrained")
    panels = figure.subplots(1, len(views), squeeze=False)[0]
    finite = shown[shown.isfinite()]
    low, high = (finite.min().item(), finite.max().item()) if len(finite) else (1.0, 1.0)
    for panel, (name, view, folded) in zip(panels, views, strict=True):
        picture = torch.where(view == -torch.inf, torch.nan, view).numpy()
        bounds = {"vmin": low if low < high else high - 1, "vmax": high}
        image = panel.imshow(picture, cmap="viridis_r", interpolation="none", **bounds)
        panel.set_title(name, fontsize=8)
        panel.tick_params(labelsize=6)
        panel.locator_params(integer=True)
        if folded and query is not None:
            panel.plot(query % view.shape[1], query // view.shape[1], "x", color="tab:red")
        elif isinstance(thing, Layout):
            _rule(panel, thing)
    if low < high:
        figure.colorbar(image, ax=list(panels), shrink=0.8).ax.tick_params(labelsize=6)
    return figure


def weights(q: Tensor, k: Tensor, bias: Bias | Tensor | None = None, scale: float | None = None) -> Tensor:
    """The weights of a call of attention, which it never holds itself: softmax(scale · q kᵀ + bias).

    They are what attention gives to the rows of an identity matrix, exactly and under every transform.

    Args:
        q: ``[..., M, H, K]``.
        k: ``[..., N, G, K]``.
        bias, scale: as :func:`xfn.attention` takes them.

    Returns:
        ``[..., H, M, N]``; rows sum to 1, or to 0 where a query sees no key.

    Raises:
        ShapeError, TypeError: as :func:`xfn.attention`.

    Example:
        >>> from xfn import bias
        >>> weights(torch.ones(3, 1, 4), torch.ones(3, 1, 4), bias.causal())[0, 1]
        tensor([0.5000, 0.5000, 0.0000])
    """
    if k.dim() < 3:
        raise ShapeError(f"k [..., N, G, K] has shape {list(k.shape)}")
    N, G = k.shape[-3:-1]
    each = torch.eye(N, dtype=k.dtype, device=k.device).unsqueeze(-2).expand(N, G, N)
    return attention(q, k, each, bias, scale=scale).movedim(-2, -3)


def save(figure: "Figure", path: str | PathLike[str]) -> None:
    """Writes a picture, with the same bytes each time.

    Args:
        figure: what :func:`draw` gave.
        path: a file, whose ending says the format, such as ``causal.svg``.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(draw(torch.eye(4).bool()), f"{folder}/eye.svg")
        ...     pathlib.Path(folder, "eye.svg").exists()
        True
    """
    with _matplotlib().rc_context({"svg.fonttype": "none", "svg.hashsalt": "xfn"}):
        figure.savefig(path, metadata={"Date": None} if str(path).endswith(".svg") else None)


def _folded(head: Tensor, query: int | None, grid: tuple[int, int] | None) -> Tensor:
    if query is None or grid is None:
        raise TypeError("query and grid go together: what the one sees is folded into the other")
    if grid[0] * grid[1] != head.shape[-1]:
        raise ShapeError(f"a grid of {grid[0]} × {grid[1]} does not hold the N={head.shape[-1]} keys")
    return head[query].reshape(grid)


def _rule(panel: "Axes", tiles: Layout) -> None:
    if max(tiles.blocks.shape[-2:]) <= FEW:
        panel.set_xticks([n - 0.5 for n in range(0, tiles.N, tiles.block)], minor=True)
        panel.set_yticks([m - 0.5 for m in range(0, tiles.M, tiles.block)], minor=True)
        panel.grid(which="minor", linewidth=0.3)
        panel.tick_params(which="minor", length=0)


def _matplotlib(name: str = "") -> Any:
    try:
        return importlib.import_module(f"matplotlib.{name}".rstrip("."))
    except ImportError as error:
        raise ImportError("xfn.plot draws with matplotlib, which is not there: pip install xfn[plot]") from error
