"""The Sparse Transformers' primitives under their own names, on tensors ``[batch, time, dim]``.

    all       a query m sees the keys n ≤ m
    local     those with m − local_attn_ctx < n ≤ m
    strided   those with n ≤ m and (m − n) % local_attn_ctx = 0
    fixed     those with n ≤ m in its own window of local_attn_ctx, or in a summary block of any

    local, 3     strided, 3     fixed, local_attn_ctx 4, blocks of 1, vertsize 1
    1 0 0 0 0    1 0 0 0 0      1 0 0 0 0 0 0 0
    1 1 0 0 0    0 1 0 0 0      1 1 0 0 0 0 0 0
    1 1 1 0 0    0 0 1 0 0      1 1 1 0 0 0 0 0
    0 1 1 1 0    1 0 0 1 0      1 1 1 1 0 0 0 0
    0 0 1 1 1    0 1 0 0 1      0 0 0 1 1 0 0 0   and so on

The strided attention of the paper takes local and strided ones in turn, in its heads or in its layers. Nothing
here holds a number per query and key: three of the modes are intervals of keys, the fourth a layout of blocks.

Source: Child, Gray, Radford and Sutskever, "Generating long sequences with sparse transformers" (2019).
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import bias, patterns
from .._core.errors import ShapeError
from ..layout import Layout
from ..ops.attention import attention
from ..ops.blocksparse import blocksparse_attention

T = TypeVar("T")
BLOCKS = (8, 16, 32, 64)


def recomputable(name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """A decorator that gives a function the keyword ``recompute``, under every transform.

    It asks to forget activations and to compute them again for the gradient. What this library's attention keeps
    is as long as its inputs, and no longer, so there is nothing to forget: the call is the same either way.

    Args:
        name: what the function is called.

    Example:
        >>> @recomputable("double")
        ... def double(x):
        ...     return 2 * x
        >>> double(torch.ones(2), recompute=True)
        tensor([2., 2.])
    """

    def decorate(f: Callable[..., T]) -> Callable[..., T]:
        @wraps(f)
        def call(*tensors: Any, recompute: bool = False, **options: Any) -> T:
            return f(*tensors, **options)

        call.__name__ = call.__qualname__ = name
        return call

    return decorate


def get_attn_mask(n: int, attn_mode: str, local_attn_ctx: int | None = None) -> Tensor:
    """The whole mask of a mode, 1 where a query sees a key.

    Args:
        n: time.
        attn_mode: ``"all"``, ``"local"`` or ``"strided"``.
        local_attn_ctx: the reach of local attention, or the stride.

    Returns:
        float32 ``[1, 1, n, n]``.

    Raises:
        ValueError: another mode, or one without its ``local_attn_ctx``.

    Example:
        >>> get_attn_mask(3, "strided", 2)[0, 0]
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [1., 0., 1.]])
    """
    m = torch.arange(n)
    apart = m[:, None] - m
    if attn_mode == "all":
        seen = apart >= 0
    elif attn_mode == "local":
        seen = (apart >= 0) & (apart < _context(attn_mode, local_attn_ctx))
    elif attn_mode == "strided":
        seen = (apart >= 0) & (apart % _context(attn_mode, local_attn_ctx) == 0)
    else:
        raise ValueError(f"attn_mode={attn_mode!r} has no mask: there are 'all', 'local' and 'strided'")
    return seen.float()[None, None]


@recomputable("attention_impl")
def attention_impl(
    q: Tensor, k: Tensor, v: Tensor, heads: int, attn_mode: str, local_attn_ctx: int | None = None
) -> Tensor:
    """Causal attention to all, to what is near, or to every so many keys: softmax(q kᵀ / √d) v, d = dim / heads.

    Args:
        q, k, v: ``[batch, time, dim]``, of any batch; ``dim`` holds the heads one after the other.
        heads: how many there are.
        attn_mode: ``"all"``, ``"local"`` or ``"strided"``.
        local_attn_ctx: the reach of local attention, or the stride; of any size.
        recompute: see :func:`recomputable`.

    Returns:
        ``[batch, time, dim]``.

    Raises:
        ValueError: another mode, or one without its ``local_attn_ctx``.
        ShapeError: heads that do not divide ``dim``.

    Example:
        >>> q, k, v = torch.randn(3, 2, 64, 32)
        >>> attention_impl(q, k, v, heads=4, attn_mode="strided", local_attn_ctx=8, recompute=True).shape
        torch.Size([2, 64, 32])
    """
    if attn_mode not in ("all", "local", "strided"):
        raise ValueError(
            f"attn_mode={attn_mode!r} is none of 'all', 'local' and 'strided'; "
            "'fixed' is one of blocksparse_attention_impl"
        )
    return _attend(*_split(heads, q, k, v), attn_mode, local_attn_ctx).flatten(-2)


@recomputable("blocksparse_attention_impl")
def blocksparse_attention_impl(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    attn_mode: str,
    local_attn_ctx: int | None = None,
    blocksize: int = 32,
    num_verts: int | None = None,
    vertsize: int | None = None,
) -> Tensor:
    """As attention_impl, in sizes that are whole blocks, and with the fixed pattern of the paper.

    In ``"fixed"`` a query sees its own window of ``local_attn_ctx``, and of every window a summary that is
    ``vertsize`` blocks wide: head h takes the (h mod ``num_verts``)-th, counted from the window's end.

    Args:
        q, k, v: ``[batch, time, dim]``, of any batch; ``dim`` holds the heads one after the other.
        heads: how many there are.
        attn_mode: ``"all"``, ``"local"``, ``"strided"`` or ``"fixed"``.
        local_attn_ctx: the reach, the stride, or the window; a multiple of ``blocksize``, but for a stride, of
            which time must hold a multiple of ``blocksize``.
        blocksize: 8, 16, 32 or 64.
        num_verts: how many summaries the heads take in turn, which must divide ``heads``; only in ``"fixed"``.
        vertsize: blocks in a summary, which must divide those in a window; only in ``"fixed"``.
        recompute: see :func:`recomputable`.

    Returns:
        ``[batch, time, dim]``.

    Raises:
        ValueError: another mode, or sizes that are not whole blocks.
        ShapeError: heads that do not divide ``dim``.

    Example:
        >>> q, k, v = torch.randn(3, 2, 64, 32)
        >>> blocksparse_attention_impl(
        ...     q, k, v, heads=4, attn_mode="fixed", local_attn_ctx=32, blocksize=8, num_verts=2, vertsize=1
        ... ).shape
        torch.Size([2, 64, 32])
    """
    if blocksize not in BLOCKS:
        raise ValueError(f"blocksize={blocksize} is none of {BLOCKS}")
    parts = _split(heads, q, k, v)
    time = q.shape[-2]
    if attn_mode == "fixed":
        window = _context(attn_mode, local_attn_ctx)
        verts, size = (1 if given is None else given for given in (num_verts, vertsize))
        tiles = _fixed(time, heads, window, blocksize, verts, size).to(q.device)
        return blocksparse_attention(tiles, *parts, bias.causal()).flatten(-2)
    if attn_mode not in ("all", "local", "strided"):
        raise ValueError(f"attn_mode={attn_mode!r} is none of 'all', 'local', 'strided' and 'fixed'")
    if attn_mode == "local" and _context(attn_mode, local_attn_ctx) % blocksize:
        raise ValueError(f"local_attn_ctx={local_attn_ctx} is no multiple of blocksize={blocksize}")
    if attn_mode == "strided" and time % (_context(attn_mode, local_attn_ctx) * blocksize):
        raise ValueError(
            f"time={time} is no multiple of local_attn_ctx * blocksize = {local_attn_ctx} * {blocksize}: "
            "attention_impl takes any"
        )
    return _attend(*parts, attn_mode, local_attn_ctx).flatten(-2)


def _attend(q: Tensor, k: Tensor, v: Tensor, mode: str, context: int | None) -> Tensor:
    """The modes in which a query sees an interval of keys, on ``[..., time, heads, features]``."""
    if mode == "all":
        return attention(q, k, v, bias.causal())
    if mode == "local":
        return attention(q, k, v, bias.local(_context(mode, context) - 1, 0))
    time = q.shape[-3]
    stride = min(_context(mode, context), max(1, time))  # a longer one lets tokens see but themselves, as this does
    apart = attention(_phases(q, stride), _phases(k, stride), _phases(v, stride), bias.causal())
    return apart.transpose(-4, -3).flatten(-4, -3)[..., :time, :, :]


def _phases(x: Tensor, stride: int) -> Tensor:
    """``[..., time, H, K]`` as ``[..., stride, ⌈time / stride⌉, H, K]``: one example for every t mod stride.

    Zeros fill the last places up: they are the future of all, so no query sees them.
    """
    whole = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, -x.shape[-3] % stride))
    phases: Tensor = whole.unflatten(-3, (whole.shape[-3] // stride, stride)).transpose(-4, -3)
    return phases


def _fixed(time: int, heads: int, window: int, block: int, verts: int, size: int) -> Layout:
    """The blocks that all heads see, or each of them when they take summaries in turn."""
    if window % block:
        raise ValueError(f"local_attn_ctx={window} is no multiple of blocksize={block}")
    if verts < 1 or heads % verts:
        raise ValueError(f"num_verts={verts} does not divide heads={heads}")
    if size < 1 or window // block % size or verts > window // block // size:
        raise ValueError(
            f"num_verts={verts} summaries of vertsize={size} blocks are not in a window of {window // block}"
        )
    count, window = -(-time // block), window // block
    whole = -(-count // window) * window
    each = [patterns.fixed(whole, window, size, group, causal=True)[:count, :count] for group in range(verts)]
    return Layout(torch.stack(each).repeat(heads // verts if verts > 1 else 1, 1, 1), block, (time, time))


def _context(mode: str, context: int | None) -> int:
    if context is None or context < 1:
        raise ValueError(f"attn_mode={mode!r} needs local_attn_ctx, a number of at least 1, but got {context}")
    return context


def _split(heads: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    for x in (q, k, v):
        if x.dim() < 2 or heads < 1 or x.shape[-1] % heads:
            raise ShapeError(f"[batch, time, dim] is {list(x.shape)}, of which heads={heads} do not share dim evenly")
    return q.unflatten(-1, (heads, -1)), k.unflatten(-1, (heads, -1)), v.unflatten(-1, (heads, -1))
