"""Attention over the tiles of a layout.

    out, lse = attention(q, k, v, bias & mask)        mask = layout.to_mask()

Only live tiles are computed, and only partial ones are masked: time and memory follow what is live, and not M × N.

    M query length      H query heads                         block queries and keys of a tile
    N key length        G key heads, H a multiple of G        I, J rows and columns of tiles

All else is as in :func:`xfn.attention`: the dtypes, rows that see nothing, what is not finite, and the weights that a
key drops.

Source: Child, Gray, Radford and Sutskever, "Generating long sequences with sparse transformers" (2019).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import bias as biases
from .. import layout as layouts
from .. import random
from .._core import tables
from .._core.case import Case, beside
from .._core.errors import ShapeError
from .._core.levels import overt, plain
from .._core.primitive import Primitive
from .._core.shapes import Signature
from ..bias import Bias
from ..layout import Layout
from ._calls import SIGNATURE, bounds, case, checked, fit, simple
from .attention import reference as attend


def blocksparse_attention(
    layout: Layout,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Bias | Tensor | None = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    key: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mix the values of the keys that each query sees, in the live tiles of a layout alone.

    Args:
        layout: a :class:`xfn.layout.Layout` of M queries and N keys, for all heads or for each of H.
        q: ``[..., M, H, K]``.
        k: ``[..., N, G, K]``; query head h reads key head h // (H // G).
        v: ``[..., N, G, V]``.
        bias: what is added to the logits, or hides within live tiles, as in :func:`xfn.attention`.
        p: probability of dropping a softmax weight; those that a key drops are the same as without a layout.
        scale: factor of q kᵀ; by default K ** -0.5.
        key: what the dropout is drawn with: one key ``[2]``, or one per example ``[..., 2]``. Required when p > 0.
        backend: ``"reference"``, ``"cpu"``, ``"triton"`` or ``"tiled"``; by default the first that can.

    Returns:
        ``[..., M, H, V]`` in q's dtype, or in that of ``torch.autocast``. No gradient flows into the layout.

    Raises:
        ShapeError: shapes contradict each other, or the layout.
        TypeError, ValueError: dtypes or devices differ, scale is a tensor, or p is not in [0, 1).
        KeyRequired: p > 0 without a key.
        Unsupported: the backend that was named cannot; the text says why.

    Examples:
        >>> q, k, v = random.normal(random.key(0), (3, 2, 64, 4, 8))
        >>> tiles = layouts.causal(64, block=16) & layouts.local(64, block=16, window=24)
        >>> blocksparse_attention(tiles, q, k, v, biases.causal()).shape
        torch.Size([2, 64, 4, 8])

        It is attention under the layout's mask:

        >>> from xfn import attention
        >>> torch.allclose(blocksparse_attention(tiles, q, k, v), attention(q, k, v, tiles.to_mask()), atol=1e-6)
        True
    """
    return blocksparse_attention_with_lse(layout, q, k, v, bias, p, scale, key=key, backend=backend)[0]


def blocksparse_attention_with_lse(
    layout: Layout,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Bias | Tensor | None = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    key: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`blocksparse_attention`, with the log-sum-exp of each query's logits over the keys that it sees.

    Returns:
        ``out [..., M, H, V]`` in q's dtype and ``lse [..., H, M]`` in float32 (float64 stays); gradients flow
        through both.

    Example:
        >>> q, k, v = random.normal(random.key(0), (3, 40, 4, 8))
        >>> out, lse = blocksparse_attention_with_lse(layouts.causal(40, block=16), q, k, v)
        >>> lse.shape
        torch.Size([4, 40])
    """
    if not isinstance(layout, Layout):
        raise TypeError(
            f"a layout is an xfn.layout.Layout, but got {type(layout).__name__}: write layout.from_mask(mask)"
        )
    tables = _tables(layout)
    if simple(q, k, v, p, scale, key, backend) and overt(tables):
        found = _bare(layout, tables, q, k, v, bias)
        if found is not None:
            return found
    operands, options = checked(q, k, v, bias, p, scale, key)
    _check(layout, q, k)
    return BLOCKSPARSE.bind(*operands, *tables, **options, block=layout.block, backend=backend)  # type: ignore[return-value]


def _bare(
    layout: Layout, tables: Sequence[Tensor | None], q: Tensor, k: Tensor, v: Tensor, bias: Bias | Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """A call with nothing but bounds that are kept, by the shortest road that takes it; None if there is none."""
    c = bounds(bias, q, k)
    if c is None:
        return None
    if q.is_cpu and (swift := BLOCKSPARSE.swift) is not None:
        out, lse = swift(q, k, v, c[0], c[1], *tables, layout.M, layout.N, layout.block)
        if out is not None:
            return out, lse
    if plain((q, k, v, *tables)) and fit(q, k, v):
        _check(layout, q, k)
        options = {"p": 0.0, "scale": q.shape[-1] ** -0.5, "block": layout.block}
        return BLOCKSPARSE.direct((q, k, v), (*c, *tables), **options)  # type: ignore[return-value]
    return None


def _check(layout: Layout, q: Tensor, k: Tensor) -> None:
    (M, H), N = q.shape[-3:-1], k.shape[-3]
    if (layout.M, layout.N) != (M, N):
        raise ShapeError(f"the layout is of M={layout.M} and N={layout.N}, but q has M={M} and k has N={N}")
    if layout.heads not in (1, H):
        raise ShapeError(f"the layout has H={layout.heads}, but q has H={H} (1 would be shared)")
    if layout.blocks.device != q.device:
        raise ValueError(f"q is on {q.device}, but the layout is on {layout.blocks.device}: write layout.to(q.device)")


def _tables(layout: Layout) -> tuple[Tensor | None, ...]:
    """The tiles and their bits, and the lists of its rows and columns."""
    bits, rows, columns = layout.bits, layout.rows, layout.columns
    assert rows is not None
    assert columns is not None
    return (
        *(layout.blocks, *((bits.index, bits.words) if bits else (None, None))),
        *(rows.index, rows.counts, rows.order, columns.index, columns.counts, columns.order),
    )


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dense: Tensor | None,
    slopes: Tensor | None,
    lo: Tensor | None,
    hi: Tensor | None,
    key: Tensor | None,
    blocks: Tensor,
    index: Tensor | None,
    words: Tensor | None,
    *lists: Tensor,
    p: float,
    scale: float,
    block: float,
) -> tuple[Tensor, Tensor]:
    """The specification, in plain torch: attention under the layout's mask; O(M N) memory."""
    mask = tables.expand(blocks, index, words, int(block), q.shape[-3], k.shape[-3])
    if dense is not None:
        mask = mask & dense if dense.dtype == torch.bool else torch.where(mask, dense, -torch.inf)
    return attend(q, k, v, mask, slopes, lo, hi, key, p=p, scale=scale)


BLOCKSPARSE = Primitive(
    "blocksparse",
    Signature(
        SIGNATURE.operands,
        (
            *SIGNATURE.constants,
            *Signature.parse(
                "; blocks H|1 I J, index? H|1 I J, words? Q block word,"
                "row_index H|1 I J, row_counts H|1 I 2, row_order rows,"
                "column_index H|1 J I, column_counts H|1 J 2, column_order columns ->"
            ).constants,
        ),
        SIGNATURE.outputs,
    ),
    reference,
    options=("p", "scale", "block"),
    backends=("cpu", "triton", "tiled"),
)


def _case(layout: Layout, name: str, *bias: Any, **sizes: Any) -> Case:
    """A case of this layout, whose lengths are the case's."""

    def attend(q: Tensor, *rest: Any, key: Tensor | None, backend: str | None) -> tuple[Tensor, Tensor]:
        return blocksparse_attention_with_lse(beside(layout, q), q, *rest, key=key, backend=backend)

    return case(attend, name, *bias, M=layout.M, N=layout.N, **sizes)


TILES = layouts.Layout(torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 0]]).bool(), 8, (19, 21))
HEADS = layouts.random(17, 30, block=8, density=0.5, heads=4, key=random.key(1))
BITS = layouts.from_mask(random.bernoulli(random.key(2), 0.2, (2, 12, 20)) & (torch.arange(20) > 3), block=8)
LARGE = layouts.from_mask(random.bernoulli(random.key(4), 0.3, (70, 90)), block=64)

CASES = (
    _case(LARGE, "large tiles", tags="compiled", batch=""),
    _case(layouts.dense(5, 6, block=128), "one tile", tags="tiny", B=1, K=2, V=2),
    _case(layouts.causal(40, block=16), "causal", biases.causal, tags="compiled"),
    _case(TILES, "empty rows", batch="B C", C=3, H=4, G=2),
    _case(HEADS, "a layout for each head", H=4, G=2, V=5),
    _case(BITS, "bits", tags="tiny", batch="", H=2, G=1, K=2, V=2),
    _case(layouts.strided(40, block=32, stride=3), "strided", lambda b: biases.causal() + Bias.of(b), "H M N"),
    _case(TILES, "bias and window", lambda b: biases.local(9, 4) + Bias.of(b), "1 M 1"),
    _case(layouts.causal(9, block=8), "alibi", lambda slopes: biases.alibi(slopes), "H", H=4, G=2),
    _case(HEADS, "mask", lambda: random.bernoulli(random.key(3), 0.5, (30,)), H=4, G=4),
    _case(TILES | layouts.strided(19, 21, block=8, stride=5), "dropout", biases.causal, p=0.3, H=2),
    _case(layouts.dense(0, 9, block=8), "no queries", tags="empty"),
    _case(layouts.dense(9, 0, block=8), "no keys", tags="empty"),
)
