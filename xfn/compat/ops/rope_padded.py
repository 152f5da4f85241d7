"""Rotary positions of new tokens, and their places in a cache of keys and values.

Of a sequence with n new queries and L keys in use, the new ones included, query t is at L − n + t, and so is its key:
that is its position, and its place among the sequence's own.
"""

import torch
from torch import Tensor

from ..._core.errors import ShapeError
from ...ops.rotary import Scaling, llama3_frequencies, rotary
from .fmha.block_diagonal import Varlen
from .fmha.paged import Paged

WIDTHS = {"": None, "f32": torch.float32, "f64": torch.float64}


def rope_padded(
    xq: Tensor,
    xk: Tensor,
    xv: Tensor,
    cache_k: Tensor,
    cache_v: Tensor,
    attn_bias: Varlen,
    *,
    theta: float = 10000.0,
    linear_scale: float = 1.0,
    use_dynamic_scaling: bool = False,
    dynamic_old_context_len: float = 8192.0,
    dynamic_scale_factor: float = 16.0,
    dynamic_low_freq_factor: float = 1.0,
    dynamic_high_freq_factor: float = 32.0,
    out_q: Tensor | None = None,
    first_seqpos: Tensor | None = None,
    seqpos: Tensor | None = None,
    adjacents: bool = True,
    internal_dtype: str = "",
) -> Tensor:
    """The queries, turned; their keys, turned, and their values are written into the caches, in place.

    Args:
        xq: ``[1, M, H, K]`` or ``[1, M, G, H, K]``, the new queries of all sequences.
        xk, xv: ``[1, M, G, K]``, or in five dims as xq, theirs.
        cache_k, cache_v: ``[1, N, G, K]``, or in five dims; one head that is expanded is written once.
        attn_bias: how many queries each sequence has and where its keys are: padded, gappy or paged.
        theta: base of the frequencies.
        linear_scale: by which positions are divided.
        use_dynamic_scaling: whether low frequencies are divided, by ``dynamic_scale_factor``; see
            :func:`xfn.llama3_frequencies` for ``dynamic_old_context_len``, ``dynamic_low_freq_factor`` and
            ``dynamic_high_freq_factor``.
        dynamic_old_context_len, dynamic_scale_factor, dynamic_low_freq_factor, dynamic_high_freq_factor: as above.
        out_q: where the queries are written to, too.
        first_seqpos: ``[sequences]``, added to the positions of each.
        seqpos: ``[M]``, the positions themselves.
        adjacents: whether features 2i and 2i + 1 are a pair, or i and i + K / 2.
        internal_dtype: ``""``, ``"f32"`` or ``"f64"``, in which features turn.

    Returns:
        In the shape of xq.

    Raises:
        ValueError: shapes that contradict each other, two sorts of positions, no such ``internal_dtype``.

    Example:
        >>> from xfn.compat.ops import fmha
        >>> new, cache = torch.ones(1, 3, 2, 4), torch.zeros(1, 8, 2, 4)
        >>> bias = fmha.attn_bias.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([1, 2], 4, [3, 2])
        >>> q = rope_padded(new, new, new, cache, cache.clone(), bias)
        >>> cache[0, :, 0].any(-1).int()
        tensor([0, 0, 1, 0, 1, 1, 0, 0], dtype=torch.int32)
    """
    scaling = _scaling(
        linear_scale,
        (dynamic_scale_factor, dynamic_old_context_len, dynamic_low_freq_factor, dynamic_high_freq_factor)
        if use_dynamic_scaling
        else None,
    )
    if out_q is not None and out_q.shape != xq.shape:
        raise ShapeError(f"out_q is {list(out_q.shape)}, but xq is {list(xq.shape)}")
    single = cache_k.stride(-2) == 0 == cache_v.stride(-2)
    if single:
        cache_k, cache_v, xk, xv = (x[..., :1, :] for x in (cache_k, cache_v, xk, xv))
    places, positions = _placed(xq, xk, xv, cache_k, cache_v, attn_bias, first_seqpos, seqpos)
    q, k = _turned(xq, xk, positions, theta, scaling, adjacents, internal_dtype)
    cache_k.index_copy_(1, places, k.to(cache_k.dtype))
    cache_v.index_copy_(1, places, xv.to(cache_v.dtype))
    return q if out_q is None else out_q.copy_(q)


def rope_padded_functional(
    xq: Tensor,
    xk: Tensor,
    xv: Tensor,
    cache_k: Tensor,
    cache_v: Tensor,
    attn_bias: Varlen,
    *,
    theta: float = 10000.0,
    linear_scale: float = 1.0,
    first_seqpos: Tensor | None = None,
    seqpos: Tensor | None = None,
    adjacents: bool = True,
    internal_dtype: str = "",
    scaling: Scaling | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`rope_padded`, with nothing written in place: the queries and the new caches are returned.

    Args:
        scaling: in place of ``linear_scale``, as of :func:`xfn.rotary`.

    Returns:
        ``(q, cache_k, cache_v)``.

    Example:
        >>> from xfn.compat.ops import fmha
        >>> new, cache = torch.ones(2, 1, 1, 2, 4), torch.zeros(2, 1, 4, 2, 4)
        >>> bias = fmha.attn_bias.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([1], 4, [3])
        >>> q, k, v = torch.vmap(lambda *x: rope_padded_functional(*x, bias))(new, new, new, cache, cache)
        >>> k.shape
        torch.Size([2, 1, 4, 2, 4])
    """
    places, positions = _placed(xq, xk, xv, cache_k, cache_v, attn_bias, first_seqpos, seqpos)
    scaling = _scaling(linear_scale, None) if scaling is None else scaling
    q, k = _turned(xq, xk, positions, theta, scaling, adjacents, internal_dtype)
    return q, cache_k.index_copy(1, places, k.to(cache_k.dtype)), cache_v.index_copy(1, places, xv.to(cache_v.dtype))


def _scaling(linear: float, dynamic: tuple[float, ...] | None) -> Scaling:
    if dynamic is None:
        return linear
    factor, length, low, high = dynamic
    return lambda f: llama3_frequencies(f, factor, length, low, high) / linear  # type: ignore[arg-type]


def _turned(
    xq: Tensor, xk: Tensor, positions: Tensor, theta: float, scaling: Scaling, adjacents: bool, internal_dtype: str
) -> tuple[Tensor, Tensor]:
    if internal_dtype not in WIDTHS:
        raise ValueError(f"internal_dtype={internal_dtype!r} is none of {list(WIDTHS)}")
    wide = WIDTHS[internal_dtype] or xq.dtype
    flat = [x.flatten(2, -2).to(torch.promote_types(wide, x.dtype)) for x in (xq, xk)]
    pairing = "adjacent" if adjacents else "halves"
    q, k = rotary(flat[0], flat[1], positions, base=theta, pairing=pairing, scaling=scaling)
    return q.reshape(xq.shape).to(xq.dtype), k.reshape(xk.shape).to(xk.dtype)


def _placed(
    xq: Tensor,
    xk: Tensor,
    xv: Tensor,
    cache_k: Tensor,
    cache_v: Tensor,
    attn_bias: Varlen,
    first_seqpos: Tensor | None,
    seqpos: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Where in the caches the new keys go, and the position of each, of arguments that are in order."""
    new, M = xq.shape[1:2], attn_bias.q_seqinfo.seqstart_py[-1]
    shapes = ", ".join(str(list(x.shape)) for x in (xq, xk, xv, cache_k, cache_v))
    alike = xk.shape[2:] == cache_k.shape[2:] and xv.shape[2:] == cache_v.shape[2:] and xq.shape[-1] == xk.shape[-1]
    if any(x.dim() not in (4, 5) or x.dim() != xq.dim() or x.shape[0] != 1 for x in (xq, xk, xv, cache_k, cache_v)):
        raise ShapeError(f"xq, xk, xv and the caches are [1, M, heads, K] or [1, M, G, H, K], but got {shapes}")
    if not alike or not new == xk.shape[1:2] == xv.shape[1:2] == (M,) or cache_k.shape[1] != cache_v.shape[1]:
        raise ShapeError(f"{M} new tokens and their caches contradict each other: {shapes}")
    if first_seqpos is not None and seqpos is not None:
        raise ValueError("first_seqpos and seqpos both say where tokens stand: pass one of them")
    places, positions, at = [], [], 0
    store = attn_bias.places().cpu() if isinstance(attn_bias, Paged) else None
    for n, (start, stop) in zip(attn_bias.q_seqinfo.lengths, attn_bias.k_seqinfo.intervals(), strict=True):
        L = stop - start
        if store is None and stop > cache_k.shape[1]:
            raise ShapeError(f"keys are at places up to {stop}, but the caches have {cache_k.shape[1]}")
        if n > L:
            raise ValueError(f"a sequence has {L} keys, which do not hold those of its {n} queries")
        places.append(torch.arange(stop - n, stop) if store is None else store[at + L - n : at + L])
        positions.append(torch.arange(L - n, L))
        at += L
    found = torch.cat(positions).to(xq.device)
    if first_seqpos is not None:
        counts = torch.tensor(attn_bias.q_seqinfo.lengths, device=first_seqpos.device)
        found = found + first_seqpos.repeat_interleave(counts, output_size=M).to(xq.device)
    return torch.cat(places).to(xq.device), found if seqpos is None else seqpos.to(xq.device)
