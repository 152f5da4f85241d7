"""Biases of many sequences back to back: query i of block b sees keys j of block b alone.

With i and j counted within the block of Mq queries and Mk keys, and s = Mk − Mq:

    BlockDiagonalMask                                          all
    BlockDiagonalCausalMask                                    j ≤ i
    BlockDiagonalCausalFromBottomRightMask                     j ≤ i + s           wants Mk ≥ Mq
    BlockDiagonalCausalLocalAttentionMask(w)                   i − w < j ≤ i       wants Mk > Mq − w
    BlockDiagonalCausalLocalAttentionFromBottomRightMask(w)    i + s − w < j ≤ i + s
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from .... import bias
from ....bias import Bias
from .seqinfo import Device, _SeqLenInfo, integers
from .triangular import AttentionBias, window


class Varlen(AttentionBias):
    """Sequences of queries, each with its own keys."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: Any

    def within(self, each: Bias) -> Bias:
        """What a block hides of itself: nothing."""
        return each

    def as_bias(self, M: int, N: int) -> Bias:
        return self.within(bias.segments(self.q_seqinfo.lengths, self.k_seqinfo.lengths))

    def kept(self, M: int, N: int) -> Bias:
        made_of = (M, N, *self.q_seqinfo.lengths, *self.k_seqinfo.intervals())
        found = self.__dict__.get("_kept")
        if found is None or found[0] != made_of:
            with torch.inference_mode(False):  # what is made in that mode can be saved for no backward
                made = self.as_bias(M, N)
                lo, hi, *rest = made.resolve(M, N, torch.device("cpu"))
            if lo is None or hi is None or rest != [None, None]:
                return made
            found = self.__dict__["_kept"] = made_of, bias.span(lo, hi)
        return found[1]

    def to(self, device: torch.device | str) -> Self:
        queries = self.q_seqinfo.to(device)
        keys = queries if self.k_seqinfo is self.q_seqinfo else self.k_seqinfo.to(device)
        return replace(self, q_seqinfo=queries, k_seqinfo=keys)  # type: ignore[type-var]


@dataclass(eq=False)
class BlockDiagonalMask(Varlen):
    """Sequences back to back, of queries and of keys."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: _SeqLenInfo
    _batch_sizes: Sequence[int] | None = None

    @classmethod
    def from_seqlens(
        cls, q_seqlen: Sequence[int] | Tensor, kv_seqlen: Sequence[int] | Tensor | None = None, *, device: Device = None
    ) -> Self:
        """From how many queries and keys there are in each block; as many keys as queries by default."""
        queries = integers(q_seqlen)
        keys = queries if kv_seqlen is None else integers(kv_seqlen)
        paired(queries, keys)
        info = _SeqLenInfo.from_seqlens(queries, device=device)
        return cls(info, info if keys == queries else _SeqLenInfo.from_seqlens(keys, device=device))

    @classmethod
    def from_tensor_list(cls, tensors: Sequence[Tensor]) -> tuple[Self, Tensor]:
        """From tensors ``[B_i, M_i, ...]``: the bias, and ``[1, Σ B_i M_i, ...]``."""
        made = cls.from_seqlens([n for x in tensors for n in [x.shape[1]] * x.shape[0]])
        made._batch_sizes = [x.shape[0] for x in tensors]
        return made, _joined(tensors)

    @classmethod
    def from_tensor_lists_qkv(
        cls, tensors_q: Sequence[Tensor], tensors_k: Sequence[Tensor], tensors_v: Sequence[Tensor] | None = None
    ) -> tuple[Self, Tensor, Tensor, Tensor | None]:
        """From lists of queries, keys and, if they are there, values: the bias, and each list as one tensor."""
        paired(tensors_q, tensors_k)
        for i, (q, k) in enumerate(zip(tensors_q, tensors_k, strict=True)):
            if q.shape[0] != k.shape[0] or (tensors_v is not None and tensors_v[i].shape[:2] != k.shape[:2]):
                raise AssertionError(f"item {i} of the lists has other batches or lengths than its queries and keys")
        lengths = [[n for x in tensors for n in [x.shape[1]] * x.shape[0]] for tensors in (tensors_q, tensors_k)]
        made = cls.from_seqlens(*lengths)
        made._batch_sizes = [x.shape[0] for x in tensors_q]
        v = None if tensors_v is None else _joined(tensors_v)
        return made, _joined(tensors_q), _joined(tensors_k), v

    def split_queries(self, tensor: Tensor) -> list[Tensor]:
        return self.q_seqinfo.split(tensor, self._batch_sizes)

    def split_kv(self, tensor: Tensor) -> list[Tensor]:
        return self.k_seqinfo.split(tensor, self._batch_sizes)

    def split(self, tensor: Tensor) -> list[Tensor]:
        """``[1, Σ B_i M_i, ...]`` as the tensors that it was made of."""
        if self.q_seqinfo is not self.k_seqinfo:
            raise AssertionError("queries and keys are not divided alike: write split_queries or split_kv")
        return self.q_seqinfo.split(tensor, self._batch_sizes)

    def materialize(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        whole = (self.q_seqinfo.seqstart_py[-1], self.k_seqinfo.seqstart_py[-1])
        if tuple(shape[-2:]) != whole:
            raise AssertionError(f"the blocks hold {whole[0]} queries and {whole[1]} keys, but shape={tuple(shape)}")
        return super().materialize(shape, dtype, device)

    def make_causal(self) -> "BlockDiagonalCausalMask":
        return BlockDiagonalCausalMask(self.q_seqinfo, self.k_seqinfo, self._batch_sizes)

    def make_causal_from_bottomright(self) -> "BlockDiagonalCausalFromBottomRightMask":
        return BlockDiagonalCausalFromBottomRightMask(self.q_seqinfo, self.k_seqinfo, self._batch_sizes)

    def make_local_attention(self, window_size: int) -> "BlockDiagonalCausalLocalAttentionMask":
        made = BlockDiagonalCausalLocalAttentionMask
        return made(self.q_seqinfo, self.k_seqinfo, self._batch_sizes, window_size)

    def make_local_attention_from_bottomright(
        self, window_size: int
    ) -> "BlockDiagonalCausalLocalAttentionFromBottomRightMask":
        made = BlockDiagonalCausalLocalAttentionFromBottomRightMask
        return made(self.q_seqinfo, self.k_seqinfo, self._batch_sizes, window_size)


@dataclass(eq=False)
class BlockDiagonalCausalMask(BlockDiagonalMask):
    """Each block causal, from its top-left corner."""

    def within(self, each: Bias) -> Bias:
        return each.causal()


@dataclass(eq=False)
class BlockDiagonalCausalFromBottomRightMask(BlockDiagonalMask):
    """Each block causal, from its bottom-right corner."""

    def __post_init__(self) -> None:
        for i, (q, k) in enumerate(zip(self.q_seqinfo.lengths, self.k_seqinfo.lengths, strict=True)):
            if k < q:
                raise ValueError(f"block {i} has num_keys={k} and num_queries={q}, but wants num_keys >= num_queries")

    def within(self, each: Bias) -> Bias:
        return each.causal("bottom-right")


@dataclass(eq=False)
class BlockDiagonalCausalLocalAttentionMask(BlockDiagonalCausalMask):
    """Each block causal from its top-left corner, and of that the last ``_window_size`` keys."""

    _window_size: int = 0

    def __post_init__(self) -> None:
        window(self._window_size)
        for q, k in zip(self.q_seqinfo.lengths, self.k_seqinfo.lengths, strict=True):
            if q - self._window_size >= k:
                raise RuntimeError(f"the last of {q} queries sees none of {k} keys in a window of {self._window_size}")

    def within(self, each: Bias) -> Bias:
        return each.local(self._window_size - 1, 0)


@dataclass(eq=False)
class BlockDiagonalCausalLocalAttentionFromBottomRightMask(BlockDiagonalCausalFromBottomRightMask):
    """Each block causal from its bottom-right corner, and of that the last ``_window_size`` keys."""

    _window_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        window(self._window_size)

    def within(self, each: Bias) -> Bias:
        return each.local(self._window_size - 1, 0, "bottom-right")


def paired(q: Sequence[Any], k: Sequence[Any]) -> None:
    if len(q) != len(k):
        raise AssertionError(f"there are {len(q)} blocks of queries, but {len(k)} of keys")


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.reshape(1, -1, *x.shape[2:]) for x in tensors], 1)
