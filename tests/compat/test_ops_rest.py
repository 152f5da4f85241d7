"""Indexing, stacking, tiles and trees of xformers.ops, against plain torch and brute force."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor, func

from tests.cases import agree
from xfn.compat import ops as xops
from xfn.compat.ops.fmha import attn_bias as b
from xfn.compat.ops.tree_attention import use_triton_splitk_for_prefix

from .biases import dense


@pytest.mark.parametrize("scaled", [False, True])
def test_scaled_index_add(scaled: bool) -> None:
    index = torch.tensor([3, 0])
    x, source = torch.randn(4, 3, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    scaling = torch.randn(5, dtype=torch.float64) if scaled else torch.ones(5, dtype=torch.float64)

    def ours(x: Tensor, source: Tensor, scaling: Tensor) -> Tensor:
        return xops.scaled_index_add(x.clone(), index, source, scaling if scaled else None, alpha=0.5)

    def theirs(x: Tensor, source: Tensor, scaling: Tensor) -> Tensor:
        return torch.stack([x[i] + sum(0.5 * scaling * source[j] for j in range(2) if index[j] == i) for i in range(4)])

    at = (x, source, scaling)
    agree(ours(*at), theirs(*at))
    first, second = (func.grad(lambda *x: f(*x).sin().sum(), (0, 1, 2)[: 2 + scaled]) for f in (ours, theirs))
    agree(first(*at), second(*at))
    kept = x.clone()
    assert xops.scaled_index_add(kept, index, source) is kept
    agree(kept, theirs(x, 2 * source, torch.ones_like(scaling)))
    half = xops.scaled_index_add(x.bfloat16(), index, source.bfloat16(), scaling.bfloat16())
    agree(half, theirs(x, 2 * source, scaling), 0.02)
    for wrong in ((index[:1], source, None), (index, source[..., :2], None), (index, source, scaling[:2])):
        with pytest.raises(ValueError, match=r"\[B', M, D\]|scaling \[D\]"):
            xops.scaled_index_add(x, *wrong)


def test_index_select_cat() -> None:
    sources = [torch.randn(4, 3, dtype=torch.float64), torch.randn(2, 2, 2, dtype=torch.float64)]
    indices = [torch.tensor([2, 2, 0]), torch.tensor([1])]

    def theirs(a: Tensor, c: Tensor) -> Tensor:
        return torch.cat([a[2], a[2], a[0], c[1].flatten()])

    agree(xops.index_select_cat(sources, indices), theirs(*sources))
    ours = func.grad(lambda *x: xops.index_select_cat(x, indices).sin().sum(), (0, 1))
    agree(ours(*sources), func.grad(lambda *x: theirs(*x).sin().sum(), (0, 1))(*sources))
    with pytest.raises(ValueError, match="2 sources, but 1 indices"):
        xops.index_select_cat(sources, indices[:1])


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("dim", range(-1, 4))
def test_slices_are_stacked_without_a_copy(dim: int, contiguous: bool) -> None:
    x = torch.randn(5, 6, 4, 3)
    order = random.Random(dim).sample(range(4), 4)
    x = x if contiguous else x.permute(order)
    tensors = xops.unbind(x, dim)
    agree(tensors, torch.unbind(x, dim), 0)
    for where in range(-4, 4):
        moved = x.movedim(dim, where)
        for part in (slice(None), slice(1, None), slice(None, None, 2), slice(0, 1)):
            want = moved.transpose(0, where)[part].transpose(0, where)
            stacked = xops.stack_or_none(tensors[part], where)
            assert stacked is not None
            assert torch.equal(stacked, want)
            assert stacked.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
            if len(tensors[part]) > 1:
                assert xops.get_stack_strides(tensors[part], where) == want.stride()
        for apart in ([tensors[0], tensors[1].clone()], [tensors[1], tensors[0]], [tensors[0], tensors[1][..., :1]]):
            assert xops.get_stack_strides(apart, where) is None
            assert xops.stack_or_none(apart, where) is None


def test_slices_and_stacks_have_gradients() -> None:
    x, slope = torch.randn(2, 3, 4, dtype=torch.float64)
    ours = func.grad(lambda x: (xops.stack_or_none(xops.unbind(x, 1), 1) * slope).sum())
    agree(ours(x), slope)
    leaf = x.clone().requires_grad_()
    slices = xops.unbind(leaf, 1)
    stacked = xops.stack_or_none(slices, 1)
    assert stacked is not None
    agree(torch.autograd.grad(stacked, (leaf, *slices), slope), (slope, *slope.unbind(1)))
    assert xops.stack_or_none([t.clone() for t in slices], 1) is None


@pytest.mark.parametrize("sizes", [((2,), (3,), (4,)), ((2, 3), (1, 4, 2), (5, 1)), ((1, 1, 2, 2), (3,), (2, 0, 1))])
def test_tiles_multiply(sizes: tuple[tuple[int, ...], ...]) -> None:
    rows, inner, columns = sizes
    a = [[torch.randn(m, k, dtype=torch.float64) for k in inner] for m in rows]
    c = [[torch.randn(k, n, dtype=torch.float64) for n in columns] for k in inner]
    want = [
        [sum((a[i][k] @ c[k][j] for k in range(len(inner))), torch.zeros(())) for j in range(len(columns))]
        for i in range(len(rows))
    ]
    agree(xops.tiled_matmul(a, c), want)
    out = [[torch.empty(m, n, dtype=torch.float64) for n in columns] for m in rows]
    xops.tiled_matmul_out(a, c, out)
    agree(out, want)

    def summed(x: Tensor) -> Tensor:
        tiles = xops.tiled_matmul([[x, *a[0][1:]], *a[1:]], c)
        return sum((t.sin().sum() for row in tiles for t in row), torch.zeros(()))

    whole = torch.cat([torch.cat(row, 1) for row in c])
    rest = torch.cat([torch.cat(row, 1) for row in a])
    agree(func.grad(summed)(a[0][0]), func.grad(lambda x: (x @ whole).sin().sum())(rest)[: rows[0], : inner[0]])
    wrong: Any
    for wrong in (([*a, a[0][1:]], c), (a, [*c, c[0]]), ([], c), (a, [[]])):
        with pytest.raises(AssertionError):
            xops.tiled_matmul(*wrong)


def test_masked_products() -> None:
    a, c = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
    mask, added = torch.rand(3, 5) < 0.5, torch.randn(2, 3, 5, dtype=torch.float64)
    agree(xops.masked_matmul(a, c), a @ c)
    agree(xops.masked_matmul(a, c, added), a @ c + added)
    got = xops.masked_matmul(a, c, mask)
    assert torch.equal(got == -torch.inf, ~mask.expand(2, 3, 5))
    agree(got.softmax(-1)[:, mask.any(-1)], (a @ c).masked_fill(~mask, -1e30).softmax(-1)[:, mask.any(-1)])
    ours = func.vmap(func.grad(lambda a, c: xops.masked_matmul(a, c, mask).exp().sum(), (0, 1)))
    theirs = func.vmap(func.grad(lambda a, c: ((a @ c).exp() * mask).sum(), (0, 1)))
    agree(ours(a, c), theirs(a, c))


CHOICES = [(0,), (1,), (0, 0), (0, 1), (1, 0)]


def test_a_tree_as_tensors() -> None:
    tree = xops.TreeAttnMetadata.from_tree_choices(CHOICES[::-1], torch.float64)
    assert list(tree.tree_choices) == CHOICES
    wanted: dict[str, Any] = {
        "tree_indices": [0, 1, 2, 3, 4, 3],
        "retrieval_indices": [[0, 1, 3], [0, 1, 4], [0, 2, 5]],
        "path_lengths": [3, 3, 3],
        "tree_seq_position_ids": [0, 1, 1, 2, 2, 2],
        "parent_node_indices": [0, 0, 1, 1, 2],
        "child_node_indices": [[0, 1], [2, 3], [4, 4], [0, 0], [0, 0], [0, 0]],
        "num_children_per_node": [2, 2, 1, 0, 0, 0],
        "candidate_idx": [0, 1, 0, 1, 0],
        "num_nodes_per_level": [1, 2, 3],
        "num_nodes_per_level_cpu": [1, 2, 3],
        "num_children_per_node_at_level": [[2], [2, 1], [0, 0, 0]],
        "num_children_per_node_at_level_cpu": [[2], [2, 1], [0, 0, 0]],
        "subtree_sizes": [1, 3, 6],
    }
    for name, want in wanted.items():
        got = getattr(tree, name)
        rows = [row.tolist() if isinstance(row, Tensor) else row for row in got]
        assert rows == want, name
    sees = [{0}, {0, 1}, {0, 2}, {0, 1, 3}, {0, 1, 4}, {0, 2, 5}]
    hidden = torch.tensor([[0.0 if n in seen else -torch.inf for n in range(6)] for seen in sees], dtype=torch.float64)
    assert torch.equal(tree.attention_bias, hidden)
    cached = xops.TreeAttnMetadata.from_tree_choices_cached
    assert cached(tuple(CHOICES)) is cached(tuple(CHOICES))
    ragged = xops.TreeAttnMetadata.from_tree_choices([(0,), (2,), (2, 1)])
    assert ragged.retrieval_indices.tolist() == [[0, 1, -1], [0, 2, 3]]
    assert ragged.tree_indices.tolist() == [0, 1, 3, 5]
    assert xops.TreeAttnMetadata.from_tree_choices([]).retrieval_indices.tolist() == [[0]]
    with pytest.raises(ValueError, match="have no parent"):
        xops.TreeAttnMetadata.from_tree_choices([(0,), (1, 0)])


def test_trees_by_their_branching() -> None:
    assert sorted(xops.construct_tree_choices([2, 3])) == sorted(
        [(0,), (1,), *((i, j) for i in range(2) for j in range(3))]
    )
    for depth, branching in ((1, 1), (3, 2), (2, 3)):
        assert len(xops.construct_full_tree_choices(depth, branching)) + 1 == xops.get_full_tree_size(
            depth + 1, branching
        )
    assert use_triton_splitk_for_prefix(3, 1, 99)
    assert not use_triton_splitk_for_prefix(129, 1, 2)


@pytest.mark.parametrize("groups", [(), (2,)])
@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("count", [6, 2])
def test_every_path_of_a_tree_is_a_sequence(groups: tuple[int, ...], paged: bool, count: int) -> None:
    """A node's output is that of causal attention over the cache and the path to it; gradients reach the caches."""
    tree, lengths, room = xops.TreeAttnMetadata.from_tree_choices(CHOICES, torch.float64), [5, 8], 8
    q = torch.randn(2, 6, *groups, 3, 4, dtype=torch.float64)
    k, v = torch.randn(2, 2, 6, *groups, 3, 4, dtype=torch.float64)
    caches = torch.randn(2, 2, room, *groups, 3, 4, dtype=torch.float64)
    bias: Any = b.BlockDiagonalPaddedKeysMask.from_seqlens([count] * 2, room, lengths)
    order = torch.tensor([[3, 1, 0, 6], [4, 2, 7, 5]])
    if paged:
        bias = bias.make_paged(order, 2, b.PagedBlockDiagonalPaddedKeysMask)

    def ours(q: Tensor, k: Tensor, v: Tensor, ck: Tensor, cv: Tensor) -> Tensor:
        if paged:
            ck, cv = (c.reshape(8, 2, *c.shape[2:])[order.flatten().argsort()].flatten(0, 1)[None] for c in (ck, cv))
        return xops.tree_attention(q[:, -count:], k, v, ck, cv, tree.attention_bias[-count:], bias)

    def theirs(q: Tensor, k: Tensor, v: Tensor, ck: Tensor, cv: Tensor) -> Tensor:
        rows = []
        for i, length in enumerate(lengths):
            for node in range(6 - count, 6):
                path = [n for n in range(6) if tree.attention_bias[node, n] == 0]
                keys, values = (torch.cat([c[i, :length], t[i, path]]) for c, t in ((ck, k), (cv, v)))
                rows.append(dense(*(t.flatten(1, -2)[None] for t in (q[i, [node]], keys, values)))[0, 0])
        return torch.stack(rows).reshape(2, count, *groups, 3, 4)

    x = (q, k, v, *caches)
    agree(ours(*x), theirs(*x))
    first, second = (func.grad(lambda *x: f(*x).sin().sum(), (0, 1, 2, 3, 4)) for f in (ours, theirs))
    agree(first(*x), second(*x))
    if not paged:
        wide = [q, *(t[..., :1, :].expand_as(t) for t in x[1:])]
        agree(ours(*wide), theirs(*wide))
    attend: Any = xops.tree_attention
    with pytest.raises(AssertionError, match="spec_attn_bias is"):
        attend(q, k, v, *caches, tree.attention_bias[1:], bias)
    with pytest.raises(AssertionError, match="contradict each other"):
        attend(q[:, -count:], k[..., :2], v, *caches, tree.attention_bias[-count:], bias)
    with pytest.raises(NotImplementedError, match="quantised"):
        attend(q, k, v, *caches, tree.attention_bias, bias, quantized_kv_scales=(q, q))
