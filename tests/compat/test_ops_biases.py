"""The bias classes: as tensors, made and split, moved, refilled, refused."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.cases import agree
from xfn.compat.ops.fmha import attn_bias as b
from xfn.compat.ops.fmha import memory_efficient_attention as attend
from xfn.compat.ops.fmha.attn_bias import AttentionBias

from .biases import DIAGONAL, EXAMPLES, TABLES, Sample, every_bias

CLASSES = [c for c in vars(b).values() if isinstance(c, type) and issubclass(c, AttentionBias)]
DIAGONALS = [c for c in CLASSES if issubclass(c, b.BlockDiagonalMask) and "Local" not in c.__name__]


@pytest.mark.parametrize("of", [c for c in CLASSES if c is not AttentionBias], ids=lambda c: c.__name__)
def test_every_class_has_an_example(of: type) -> None:
    assert any(type(sample.bias) is of for sample in EXAMPLES)


@every_bias
def test_as_a_tensor_it_is_what_the_definition_says(sample: Sample) -> None:
    want = sample.added()
    lead = tuple(want.shape[:-2])
    for shape in ((*lead, sample.M, sample.N), (3, *(lead or (1,)), sample.M, sample.N)):
        got = sample.bias.materialize(shape, torch.float64)
        assert torch.equal(got, want.expand(shape))
    assert sample.bias.materialize((*lead, sample.M, sample.N)).dtype == torch.float32


@every_bias
def test_kernels_get_intervals_and_no_mask(sample: Sample) -> None:
    N = len(sample.bias.places()) if hasattr(sample.bias, "places") else sample.N
    normal = sample.bias.as_bias(sample.M, N).resolve(sample.M, N)
    assert (normal.dense is None) is not sample.bias.HOLDS_DENSE_TENSOR
    assert normal.lo is not None or normal.hi is not None


@every_bias
def test_it_moves(sample: Sample) -> None:
    moved = sample.bias.to("meta")
    assert type(moved) is type(sample.bias)
    for name in ("q_seqinfo", "k_seqinfo"):
        if hasattr(moved, name):
            assert getattr(moved, name).seqstart.is_meta
            assert getattr(moved, name).seqstart_py == getattr(sample.bias, name).seqstart_py
    if hasattr(moved, "block_tables"):
        assert moved.block_tables.is_meta
    assert "object at" not in repr(sample.bias)


@pytest.mark.parametrize("of", DIAGONALS, ids=lambda c: c.__name__)
def test_lists_are_packed_and_split(of: type[b.BlockDiagonalMask]) -> None:
    queries, keys = ([torch.randn(B, M, 1, 8) for B, M in sizes] for sizes in (((1, 3), (3, 2)), ((1, 5), (3, 4))))
    bias, q = of.from_tensor_list(queries)
    assert type(bias) is of
    assert q.shape == (1, 9, 1, 8)
    agree(bias.split(q), queries, 0)
    agree(bias.to("cpu").split(q), queries, 0)
    bias, q, k, v = of.from_tensor_lists_qkv(queries, keys, keys)
    assert torch.equal(k, v)
    agree((bias.split_queries(q), bias.split_kv(k)), (queries, keys), 0)
    assert of.from_tensor_lists_qkv(queries, keys)[3] is None
    assert bias.materialize((q.shape[1], k.shape[1])).shape == (9, 17)
    for wrong in (lambda: bias.split_queries(k), lambda: bias.split_kv(q), lambda: bias.split_kv(torch.cat([k, k]))):
        with pytest.raises(ValueError, match="the sequences are a tensor"):
            wrong()
    with pytest.raises(AssertionError, match="split_queries or split_kv"):
        bias.split(q)
    made = bias.make_causal(), bias.make_causal_from_bottomright(), bias.make_local_attention(2)
    for other in (*made, bias.make_local_attention_from_bottomright(2)):
        agree(other.split_queries(q), queries, 0)


def test_lengths_are_refilled_in_place() -> None:
    bias = b.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([2, 2], 5, [4, 3])
    where = bias.k_seqinfo.seqlen, bias.q_seqinfo.seqstart
    q, k = torch.randn(1, 4, 1, 4), torch.randn(1, 10, 1, 4)
    agree(attend(q, k, k, bias), attend(q, k, k, bias.to("cpu")), 0)
    bias.k_seqinfo.from_seqlens_padded_inplace([2, 4])
    bias.q_seqinfo.from_seqlens_inplace([1, 2])
    fresh = b.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([1, 2], 5, [2, 4])
    assert torch.equal(bias.materialize((3, 10)), fresh.materialize((3, 10)))
    agree(attend(q[:, :3], k, k, bias), attend(q[:, :3], k, k, fresh), 0)
    assert where[0].tolist() == [2, 4]
    assert where[1].tolist() == [0, 1, 3]
    for refill, lengths in (
        (bias.k_seqinfo.from_seqlens_padded_inplace, [5, 1]),
        (bias.q_seqinfo.from_seqlens_inplace, [1]),
    ):
        with pytest.raises(AssertionError, match="in place there are 2 lengths"):
            refill(lengths)


def test_sequences_know_where_they_are() -> None:
    info = b._SeqLenInfo.from_seqlens([2, 3, 2])
    assert (info.seqstart_py, info.max_seqlen, info.min_seqlen) == ([0, 2, 5, 7], 3, 2)
    assert list(info.intervals()) == [(0, 2), (2, 5), (5, 7)]
    assert (info.seqstart.dtype, info.seqstart.tolist()) == (torch.int32, [0, 2, 5, 7])
    padded = b._PaddedSeqLenInfo.from_seqlens_padded(torch.tensor([2, 3, 2]), 4)
    assert (padded.seqstart_py, padded.seqlen_py, padded.padding) == ([0, 4, 8, 12], [2, 3, 2], 4)
    assert list(padded.intervals()) == [(0, 2), (4, 7), (8, 10)]
    gappy = b._GappySeqInfo.from_seqlens_gappy([1, 4, 8, 11], [2, 3, 2], False)
    assert list(gappy.intervals()) == [(1, 3), (4, 7), (8, 10)]


Padded, Gappy, Paged = b.BlockDiagonalPaddedKeysMask, b.BlockDiagonalGappyKeysMask, b.PagedBlockDiagonalPaddedKeysMask


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: b.LowerTriangularFromBottomRightLocalAttentionMask(0), ValueError, "window_size=0"),
        (lambda: b.LocalAttentionFromBottomRightMask(-1, 0), ValueError, "reaches 0 keys or more"),
        (lambda: b.BlockDiagonalMask.from_seqlens([2, -1]), ValueError, "0 or more, but got [2, -1]"),
        (lambda: b.BlockDiagonalMask.from_seqlens([2], [1, 1]), AssertionError, "1 blocks of queries, but 2 of keys"),
        (
            lambda: b.BlockDiagonalMask.from_seqlens([2], [1]).make_causal_from_bottomright(),
            ValueError,
            "num_keys=1 and num_queries=2",
        ),
        (lambda: DIAGONAL.make_local_attention(0), ValueError, "window_size=0"),
        (lambda: DIAGONAL.make_local_attention_from_bottomright(-1), ValueError, "window_size=-1"),
        (
            lambda: b.BlockDiagonalMask.from_seqlens([4], [2]).make_local_attention(2),
            RuntimeError,
            "the last of 4 queries sees none",
        ),
        (lambda: DIAGONAL.materialize((5, 8)), AssertionError, "5 queries and 9 keys"),
        (lambda: Padded.from_seqlens([1], 4, [2]).materialize((1, 2)), ValueError, "1 queries and 4 places"),
        (lambda: Padded.from_seqlens([1], 4, [5]), AssertionError, "exceed the padding"),
        (
            lambda: b.BlockDiagonalCausalLocalAttentionPaddedKeysMask.from_seqlens_local([1], 4, [2], 0),
            ValueError,
            "window_size=0",
        ),
        (
            lambda: b.BlockDiagonalLocalAttentionPaddedKeysMask.from_seqlens_local([1], 4, [2], 0, -1),
            ValueError,
            "reaches 0 keys or more",
        ),
        (lambda: Gappy.from_seqlens([1], [0], [2]), ValueError, "where the keys end, but there are 1 starts"),
        (lambda: Gappy.from_seqlens([1], [1, 4], [2]).materialize((1, 3)), ValueError, "4 places"),
        (lambda: Gappy.from_seqlens([1], [1, 4], [2]).as_bias(1, 3), ValueError, "the keys end at 4"),
        (
            lambda: Gappy.from_seqlens([1], [1, 4], [2]).make_paged(TABLES, 2, 3, b.PagedBlockDiagonalGappyKeysMask),
            ValueError,
            "notional_padding=3 is no multiple of page_size=2",
        ),
        (
            lambda: Gappy.from_seqlens([1], [7, 8], [1]).make_paged(TABLES, 2, 6, b.PagedBlockDiagonalGappyKeysMask),
            AssertionError,
            "starts [7] are not all in 3 pages",
        ),
        (lambda: Paged.from_seqlens([1], [2], TABLES[:1], 2).materialize((1, 7)), ValueError, "keys at [6, 7]"),
        (lambda: b._PaddedSeqLenInfo.from_seqlens([1]), RuntimeError, "from_seqlens_padded"),
    ],
)
def test_what_is_refused(make: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        make()
