"""Bias: what is added to the logits before the softmax.

One type holds every mask and bias. Its terms combine with ``&`` (keep where both allow) and ``+`` (add), which
are the same operation on logits and read differently on purpose. Before a kernel sees a bias it is resolved to
its normal form: query m sees the keys lo[m] ≤ n < hi[m]; ``dense [..., H|1, M|1, N|1]`` is added where it
floats and hides where it is False; ``-slopes[h] · |m − n|`` is added.

            causal()   causal("bottom-right")   local(1, 0)   segments([2, 3])
    n →     1 0 0 0 0  1 1 0 0 0                1 0 0 0 0     1 1 0 0 0
    m ↓     1 1 0 0 0  1 1 1 0 0                1 1 0 0 0     1 1 0 0 0
            1 1 1 0 0  1 1 1 1 0                0 1 1 0 0     0 0 1 1 1
            1 1 1 1 0  1 1 1 1 1                0 0 1 1 0     0 0 1 1 1
                                                0 0 0 1 1     0 0 1 1 1
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from ._core import terms
from ._core.errors import ShapeError
from ._core.pytree import pytree
from ._core.terms import Alibi, Band, Corner, Dense, Interval, Resolved, Segments, Term

Lengths = Sequence[int] | Tensor


@pytree
class Bias:
    """A sum of terms; make one with this module's functions. Its tensors are leaves for vmap, grad and compile."""

    terms: tuple[Term, ...]

    @staticmethod
    def of(value: "Bias | Tensor | None") -> "Bias":
        """What an attention takes as its bias, as one."""
        if value is None:
            return Bias(())
        if isinstance(value, Tensor):
            return dense(value)
        if isinstance(value, Bias):
            return value
        raise TypeError(f"a bias is None, a tensor or a bias.Bias, but got {type(value).__name__}")

    def __add__(self, other: "Bias") -> "Bias":
        if not isinstance(other, Bias):
            raise TypeError(f"a bias combines with a bias, not with {type(other).__name__}: write bias.dense(tensor)")
        return Bias(self.terms + other.terms)

    __and__ = __add__

    def causal(self, corner: Corner = "top-left") -> "Bias":
        """Also hide the future; within each segment when there are segments. See :func:`causal`."""
        return self._refined(Band(None, 0, _corner(corner)))

    def local(self, left: int | None, right: int | None, corner: Corner = "top-left") -> "Bias":
        """Also hide what is far; within each segment when there are segments. See :func:`local`."""
        return self._refined(_band(left, right, corner))

    def _refined(self, band: Band) -> "Bias":
        if not any(isinstance(t, Segments) for t in self.terms):
            return Bias((*self.terms, band))
        return Bias(tuple(replace(t, bands=(*t.bands, band)) if isinstance(t, Segments) else t for t in self.terms))

    def resolve(self, M: int, N: int, device: torch.device | None = None) -> Resolved:
        """The normal form for M queries and N keys: every bound lies in [0, N]."""
        return terms.resolve(self.terms, M, N, device)

    def materialize(
        self, M: int, N: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> Tensor:
        """The whole bias as a tensor ``[..., H|1, M, N]`` with −∞ where it hides, to look at.

        Example:
            >>> causal().materialize(2, 3)
            tensor([[[0., -inf, -inf],
                     [0., 0., -inf]]])
        """
        lo, hi, dense, slopes = self.resolve(M, N, device)
        m, n = torch.arange(M, device=device), torch.arange(N, device=device)
        bias = torch.zeros(1, M, N, dtype=dtype, device=device)
        if slopes is not None:
            bias = bias - slopes.to(bias)[..., None, None] * (m[:, None] - n).abs()
        if dense is not None and dense.dtype != torch.bool:
            bias = bias + dense.to(dtype)
        if dense is not None and dense.dtype == torch.bool:
            bias = torch.where(dense, bias, -torch.inf)
        if lo is not None:
            bias = torch.where((n >= lo[..., None]).unsqueeze(-3), bias, -torch.inf)
        if hi is not None:
            bias = torch.where((n < hi[..., None]).unsqueeze(-3), bias, -torch.inf)
        return bias

    def added_to(self, logits: Tensor) -> Tensor:
        """``logits [..., H, M, N]`` with the bias added: for attentions written in plain torch."""
        M, N = logits.shape[-2:]
        return logits + self.materialize(M, N, logits.dtype, logits.device)

    def split(self, packed: Tensor, dim: int = -3) -> tuple[Tensor, ...]:
        """What :func:`pack` joined, apart again: one view per segment of the queries, along ``dim``."""
        found = [t.lengths for t in self.terms if isinstance(t, Segments)]
        if len(found) != 1 or found[0] is None:
            raise ValueError("split needs one bias.segments whose lengths are a list of integers; this bias has none")
        if packed.shape[dim] != sum(found[0]):
            raise ShapeError(f"the segments hold {sum(found[0])} queries, but dim {dim} has {packed.shape[dim]}")
        return tuple(torch.split(packed, list(found[0]), dim))


def causal(corner: Corner = "top-left") -> Bias:
    """Hide the future: query m sees key n when n ≤ m, or n − N ≤ m − M from the bottom-right corner.

    Args:
        corner: where the diagonal starts. The two differ when M ≠ N: ``"top-left"`` aligns the first query with
            the first key, ``"bottom-right"`` the last with the last, as in decoding with a cache.

    Example:
        >>> causal("bottom-right").materialize(2, 3)
        tensor([[[0., 0., -inf],
                 [0., 0., 0.]]])
    """
    return Bias((Band(None, 0, _corner(corner)),))


def local(left: int | None, right: int | None, corner: Corner = "top-left") -> Bias:
    """Hide what is far: query m sees m − left ≤ n ≤ m + right.

    Args:
        left, right: how many keys are seen on each side of the diagonal; ``None`` is all of them.
        corner: where the diagonal starts, as in :func:`causal`.

    Example:
        >>> local(1, 0).materialize(3, 3)
        tensor([[[0., -inf, -inf],
                 [0., 0., -inf],
                 [-inf, 0., 0.]]])
    """
    return Bias((_band(left, right, corner),))


def segments(lengths: Lengths, kv_lengths: Lengths | None = None) -> Bias:
    """Block-diagonal: segment i of the queries sees segment i of the keys, and nothing else.

    Args:
        lengths: queries in each segment, integers or an int tensor ``[..., S]``.
        kv_lengths: keys in each segment; by default the same.

    Example:
        >>> segments([1, 2]).materialize(3, 3)
        tensor([[[0., -inf, -inf],
                 [-inf, 0., 0.],
                 [-inf, 0., 0.]]])
    """
    queries = _lengths("lengths", lengths)
    keys = queries if kv_lengths is None else _lengths("kv_lengths", kv_lengths)
    total = _total(lengths if kv_lengths is None else kv_lengths)
    return _segments(queries, keys.cumsum(-1) - keys, keys, lengths, total)


def padded(lengths: Lengths, kv_padding: int, kv_lengths: Lengths) -> Bias:
    """As :func:`segments`, with the keys of segment i in slots ``i · kv_padding`` and on, the unused ones hidden.

    Args:
        lengths: queries in each segment.
        kv_padding: slots that each segment's keys have.
        kv_lengths: how many of them are used; at most ``kv_padding``.

    Example:
        >>> padded([1, 1], 2, [2, 1]).materialize(2, 4)
        tensor([[[0., 0., -inf, -inf],
                 [-inf, -inf, 0., -inf]]])
    """
    queries, keys = _lengths("lengths", lengths), _lengths("kv_lengths", kv_lengths)
    if not isinstance(kv_lengths, Tensor) and max(kv_lengths) > kv_padding:
        raise ValueError(f"kv_lengths={list(kv_lengths)} exceed kv_padding={kv_padding}")
    starts = torch.arange(keys.shape[-1], device=keys.device) * kv_padding
    keys = keys.clamp(max=kv_padding)
    return _segments(queries, starts.expand_as(keys), keys, lengths, keys.shape[-1] * kv_padding)


def span(lo: Tensor | int, hi: Tensor | int) -> Bias:
    """Query m sees the keys lo[m] ≤ n < hi[m]: the normal form itself.

    Args:
        lo, hi: integers, or int tensors ``[..., M]`` or ``[..., 1]``; ``...`` is batch, so
            ``span(0, lengths[:, None])`` hides each example's padding.

    Example:
        >>> span(0, torch.tensor([[1], [2]])).materialize(1, 2)
        tensor([[[[0., -inf]]],
        <BLANKLINE>
                [[[0., 0.]]]])
    """
    bounds = [torch.as_tensor(b) for b in (lo, hi)]
    for name, bound in zip(("lo", "hi"), bounds, strict=True):
        if bound.dtype.is_floating_point or bound.dtype == torch.bool:
            raise TypeError(f"span takes integers, but {name} is {bound.dtype}")
    return Bias((Interval(*(b.long() if b.dim() else b.long()[None] for b in bounds)),))


def alibi(slopes: Tensor) -> Bias:
    """Attention with linear biases: ``-slopes[h] · |m − n|`` is added (Press, Smith and Lewis, 2022).

    Args:
        slopes: floating ``[..., H]``; gradients flow into them.

    Example:
        >>> alibi(torch.tensor([0.5])).materialize(2, 2)
        tensor([[[ 0.0000, -0.5000],
                 [-0.5000,  0.0000]]])
    """
    if not slopes.is_floating_point() or slopes.dim() == 0:
        raise TypeError(f"alibi takes floating slopes [..., H], but got {slopes.dtype} {list(slopes.shape)}")
    return Bias((Alibi(slopes),))


def dense(tensor: Tensor) -> Bias:
    """A tensor as a bias: floating is added, with gradient; boolean keeps where it is True.

    Args:
        tensor: broadcasts to ``[..., H, M, N]``.

    Example:
        >>> dense(torch.tensor([True, False])).materialize(1, 2)
        tensor([[[0., -inf]]])
    """
    if not (tensor.is_floating_point() or tensor.dtype == torch.bool):
        raise TypeError(
            f"a dense bias is floating (added) or boolean (True = may attend), but got {tensor.dtype}: "
            "write mask.bool() for a mask, bias.float() to add it"
        )
    return Bias((Dense(tensor),))


def pack(tensors: Sequence[Tensor], dim: int = -3) -> tuple[Tensor, Bias]:
    """Ragged sequences joined along their length, and the segments that keep them apart.

    Args:
        tensors: ``[..., M_i, H, K]``.
        dim: where their length is.

    Returns:
        ``[..., ΣM_i, H, K]`` and a :class:`Bias`; its ``split`` undoes the packing.

    Example:
        >>> packed, documents = pack([torch.zeros(3, 2, 4), torch.ones(5, 2, 4)])
        >>> [t.shape[0] for t in documents.split(packed)]
        [3, 5]
    """
    if not tensors:
        raise ValueError("pack needs at least one tensor")
    return torch.cat(list(tensors), dim), segments([t.shape[dim] for t in tensors])


def _corner(corner: str) -> Corner:
    if corner not in get_args(Corner):
        raise ValueError(f"corner={corner!r} is neither of {list(get_args(Corner))}")
    return corner  # type: ignore[return-value]


def _band(left: int | None, right: int | None, corner: str) -> Band:
    for name, reach in (("left", left), ("right", right)):
        if reach is not None and reach < 0:
            raise ValueError(f"{name}={reach} reaches nowhere: it must be at least 0, or None for no limit")
    return Band(left, right, _corner(corner))


def _lengths(name: str, lengths: Lengths) -> Tensor:
    if isinstance(lengths, Tensor):
        if lengths.dtype.is_floating_point or lengths.dtype == torch.bool or lengths.dim() == 0:
            raise TypeError(f"{name} are integers [..., S], but got {lengths.dtype} {list(lengths.shape)}")
        return lengths.long()
    if not lengths or min(lengths) < 0:
        raise ValueError(f"{name} are one or more integers from 0 on, but got {list(lengths)}")
    return torch.tensor(lengths)


def _total(lengths: Lengths) -> int | None:
    return None if isinstance(lengths, Tensor) else sum(lengths)


def _segments(queries: Tensor, starts: Tensor, keys: Tensor, lengths: Lengths, total: int | None) -> Bias:
    if queries.shape[-1] != keys.shape[-1]:
        raise ShapeError(f"there are {queries.shape[-1]} lengths, but {keys.shape[-1]} kv_lengths")
    fixed = None if isinstance(lengths, Tensor) else tuple(lengths)
    return Bias((Segments(queries, starts, keys, lengths=fixed, total=total),))
