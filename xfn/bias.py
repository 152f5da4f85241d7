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

import torch
from torch import Tensor

from ._core import terms
from ._core.errors import ShapeError
from ._core.kinds import check_tensors
from ._core.pytree import pytree
from ._core.terms import Alibi, Band, Corner, Dense, Integers, Interval, Lengths, Resolved, Segments, Term, reach


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

    __and__ = __radd__ = __rand__ = __add__

    def causal(self, corner: Corner = "top-left") -> "Bias":
        """Also hide the future; within each segment when there are segments. See :func:`causal`."""
        return self._refined(Band.of(None, 0, corner))

    def local(self, left: int | None, right: int | None, corner: Corner = "top-left") -> "Bias":
        """Also hide what is far; within each segment when there are segments. See :func:`local`."""
        return self._refined(Band.of(left, right, corner))

    def _refined(self, band: Band) -> "Bias":
        if not any(isinstance(t, Segments) for t in self.terms):
            return Bias((*self.terms, band))
        return Bias(tuple(replace(t, bands=(*t.bands, band)) if isinstance(t, Segments) else t for t in self.terms))

    def resolve(self, M: int, N: int, device: torch.device | None = None) -> Resolved:
        """The normal form for M queries and N keys: every bound lies in [0, N]."""
        return terms.resolve(self.terms, M, N, device)

    def kept(self, M: int, N: int) -> Resolved | None:
        """As :meth:`resolve` on a CPU, from a cache, and not to be written to; None where there is more than bands."""
        return terms.kept(self.terms, M, N)

    def materialize(
        self, M: int, N: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> Tensor:
        """The whole bias as a tensor ``[..., H|1, M, N]`` with −∞ where it hides, to look at.

        Example:
            >>> causal().materialize(2, 3)
            tensor([[[0., -inf, -inf],
                     [0., 0., -inf]]])
        """
        normal = self.resolve(M, N, device)
        added = normal.added_to(torch.zeros(1, M, N, dtype=dtype, device=device))
        return torch.where(normal.visible(M, N, device), added, -torch.inf)

    def added_to(self, logits: Tensor) -> Tensor:
        """``logits [..., H, M, N]`` with the bias added: for attentions written in plain torch."""
        M, N = logits.shape[-2:]
        return logits + self.materialize(M, N, logits.dtype, logits.device)

    def split(self, packed: Tensor, dim: int = -3) -> tuple[Tensor, ...]:
        """What :func:`pack` joined, apart again: one view per segment of the queries, along ``dim``."""
        found = [t.queries.fixed for t in self.terms if isinstance(t, Segments)]
        if len(found) != 1 or found[0] is None:
            of = "of tensors" if found == [None] else f"{len(found)} times"
            raise ValueError(f"split needs one bias.segments of a list of integers, but this bias has segments {of}")
        if packed.shape[dim] != sum(found[0]):
            raise ShapeError(f"the segments hold {sum(found[0])} queries, but dim {dim} has {packed.shape[dim]}")
        return tuple(torch.split(packed, list(found[0]), dim))


def causal(corner: Corner = "top-left") -> Bias:
    """Hide the future: query m sees key n when n ≤ m, or n − N ≤ m − M from the bottom-right corner.

    Args:
        corner: where the diagonal starts. The two differ when M ≠ N: ``"top-left"`` aligns the first query with
            the first key, ``"bottom-right"`` the last with the last, as in decoding with a cache.

    Raises:
        ValueError: another corner.

    Example:
        >>> causal("bottom-right").materialize(2, 3)
        tensor([[[0., 0., -inf],
                 [0., 0., 0.]]])
    """
    return Bias((Band.of(None, 0, corner),))


def local(left: int | None, right: int | None, corner: Corner = "top-left") -> Bias:
    """Hide what is far: query m sees m − left ≤ n ≤ m + right.

    Args:
        left, right: how many keys are seen on each side of the diagonal; ``None`` is all of them.
        corner: where the diagonal starts, as in :func:`causal`.

    Raises:
        TypeError, ValueError: a reach that is no integer, or negative; another corner.

    Example:
        >>> local(1, 0).materialize(3, 3)
        tensor([[[0., -inf, -inf],
                 [0., 0., -inf],
                 [-inf, 0., 0.]]])
    """
    return Bias((Band.of(left, right, corner),))


def segments(lengths: Lengths, kv_lengths: Lengths | None = None) -> Bias:
    """Block-diagonal: segment i of the queries sees segment i of the keys, and nothing else.

    Args:
        lengths: queries in each segment: a list of integers, or an int tensor ``[..., S]``, which is data.
        kv_lengths: keys in each segment; by default the same.

    Raises:
        TypeError, ValueError: what is no list of lengths.
        ShapeError: there are not as many of one as of the other; or, when used, lists that do not add up to M and N.

    Example:
        >>> segments([1, 2]).materialize(3, 3)
        tensor([[[0., -inf, -inf],
                 [-inf, 0., 0.],
                 [-inf, 0., 0.]]])
    """
    return _segments(lengths, lengths if kv_lengths is None else kv_lengths, None)


def padded(lengths: Lengths, kv_padding: int, kv_lengths: Lengths) -> Bias:
    """As :func:`segments`, with the keys of segment i in slots ``i · kv_padding`` and on, the unused ones hidden.

    Args:
        lengths: queries in each segment.
        kv_padding: slots that each segment's keys have.
        kv_lengths: how many of them are used; at most ``kv_padding``.

    Raises:
        TypeError, ValueError, ShapeError: as :func:`segments`; or a list has more keys than slots.

    Example:
        >>> padded([1, 1], 2, [2, 1]).materialize(2, 4)
        tensor([[[0., 0., -inf, -inf],
                 [-inf, -inf, 0., -inf]]])
    """
    made = _segments(lengths, kv_lengths, reach("kv_padding", kv_padding))
    if not isinstance(kv_lengths, Tensor) and max(kv_lengths) > kv_padding:
        raise ValueError(f"kv_lengths={list(kv_lengths)} exceed kv_padding={kv_padding}")
    return made


def span(lo: Tensor | int, hi: Tensor | int) -> Bias:
    """Query m sees the keys lo[m] ≤ n < hi[m]: the normal form itself.

    Args:
        lo, hi: integers, or int tensors ``[..., M]`` or ``[..., 1]``; ``...`` is batch, so
            ``span(0, lengths[:, None])`` hides each example's padding.

    Raises:
        TypeError: bounds that are not integers.
        ShapeError: when used, bounds for a number of queries that is not M.

    Example:
        >>> span(0, torch.tensor([[1], [2]])).materialize(1, 2)
        tensor([[[[0., -inf]]],
        <BLANKLINE>
                [[[0., 0.]]]])
    """
    return Bias((Interval(Integers.bound("lo", lo), Integers.bound("hi", hi)),))


def alibi(slopes: Tensor) -> Bias:
    """Attention with linear biases: ``-slopes[h] · |m − n|`` is added (Press, Smith and Lewis, 2022).

    Positions count from the first query and the first key. Where the last ones coincide, as in decoding with a
    cache, put ``m + N − M`` in place of m: write ``dense(-slopes[:, None, None] * distance)``.

    Args:
        slopes: floating ``[..., H]``; gradients flow into them.

    Raises:
        TypeError: slopes that are no floating tensor.

    Example:
        >>> alibi(torch.tensor([0.5])).materialize(2, 2)
        tensor([[[ 0.0000, -0.5000],
                 [-0.5000,  0.0000]]])
    """
    check_tensors({"slopes": slopes})
    if not slopes.is_floating_point() or slopes.dim() == 0:
        raise TypeError(f"alibi takes floating slopes [..., H], but got {slopes.dtype} {list(slopes.shape)}")
    return Bias((Alibi(slopes),))


def dense(tensor: Tensor) -> Bias:
    """A tensor as a bias: floating is added, with gradient; boolean keeps where it is True.

    Args:
        tensor: broadcasts to ``[..., H, M, N]``.

    Raises:
        TypeError: what is neither.

    Example:
        >>> dense(torch.tensor([True, False])).materialize(1, 2)
        tensor([[[0., -inf]]])
    """
    check_tensors({"a dense bias": tensor})
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

    Raises:
        ValueError, ShapeError: no tensors, or tensors that differ in more than their length.

    Example:
        >>> packed, documents = pack([torch.zeros(3, 2, 4), torch.ones(5, 2, 4)])
        >>> [t.shape[0] for t in documents.split(packed)]
        [3, 5]
    """
    if not len(tensors):
        raise ValueError("pack needs at least one tensor")
    check_tensors({f"tensors[{i}]": t for i, t in enumerate(tensors)})
    shapes = [list(t.shape) for t in tensors]
    if not all(len(s) == len(shapes[0]) >= max(-dim, dim + 1) for s in shapes):
        raise ShapeError(f"pack joins tensors of one rank that have dim {dim}, but got {shapes}")
    lengths = [s.pop(dim) for s in shapes]
    if any(s != shapes[0] for s in shapes):
        raise ShapeError(
            f"pack joins tensors that differ in dim {dim} alone, but got {[list(t.shape) for t in tensors]}"
        )
    return torch.cat(list(tensors), dim), segments(lengths)


def _segments(lengths: Lengths, kv_lengths: Lengths, padding: int | None) -> Bias:
    queries, keys = Integers.lengths("lengths", lengths), Integers.lengths("kv_lengths", kv_lengths)
    if queries.count != keys.count:
        raise ShapeError(f"there are {queries.count} lengths, but {keys.count} kv_lengths")
    return Bias((Segments(queries, keys, padding),))
