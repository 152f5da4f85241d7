"""Attention of a tree of speculative tokens: each sees the cache, the root, its ancestors and itself.

A node is the path to it, a tuple of the numbers of children; the root is above all of them and is node 0. Nodes are in
the order of their depths, and of their paths within one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise, product

import torch
from torch import Tensor

from .fmha.attention import memory_efficient_attention_partial
from .fmha.block_diagonal import Varlen
from .fmha.common import AttentionFwOpBase
from .fmha.merge import merge_attentions
from .fmha.paged import Paged

Node = tuple[int, ...]


@dataclass(eq=False)
class TreeAttnMetadata:
    """A tree as tensors over its T nodes, the root included.

    tree_choices                   the nodes, without the root, in order
    attention_bias                 [T, T], 0 where a node sees another, else −∞
    tree_indices                   [T] which draft token a node is: tokens of a level are numbered on from the last
    retrieval_indices              [leaves, levels] the nodes from the root to each leaf, then −1; in the leaves' order
    path_lengths                   of each of those
    tree_seq_position_ids          [T] the depth of a node
    parent_node_indices            [T − 1] of a node's parent, of every node but the root
    child_node_indices             [T, most] of a node's children, in tree_choices; the last one again, or 0 for a leaf
    num_children_per_node          [T]
    candidate_idx                  [T − 1] which of its siblings a node is, of every node but the root
    num_nodes_per_level            [levels]; _cpu: the same on the CPU
    num_children_per_node_at_level a row of num_children_per_node for each level; _cpu: the same on the CPU
    subtree_sizes                  how many nodes there are down to each level
    """

    tree_choices: Sequence[Node]
    attention_bias: Tensor
    tree_indices: Tensor
    retrieval_indices: Tensor
    path_lengths: list[int]
    tree_seq_position_ids: Tensor
    parent_node_indices: Tensor
    child_node_indices: Tensor
    num_children_per_node: Tensor
    candidate_idx: Tensor
    num_nodes_per_level: Tensor
    num_nodes_per_level_cpu: Tensor
    num_children_per_node_at_level: list[Tensor]
    num_children_per_node_at_level_cpu: list[Tensor]
    subtree_sizes: list[int]

    @classmethod
    @lru_cache
    def from_tree_choices_cached(
        cls, tree_choices: tuple[Node, ...], dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> "TreeAttnMetadata":
        """As :meth:`from_tree_choices`, made once."""
        return cls.from_tree_choices(tree_choices, dtype, device)

    @classmethod
    def from_tree_choices(
        cls, tree_choices: Iterable[Node], dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> "TreeAttnMetadata":
        """Of the nodes of a tree, in any order.

        Example:
            >>> tree = TreeAttnMetadata.from_tree_choices([(0,), (0, 0), (0, 1), (1,), (1, 0)])
            >>> tree.tree_indices, tree.parent_node_indices
            (tensor([0, 1, 2, 3, 4, 3]), tensor([0, 0, 1, 1, 2]))
        """
        nodes: list[Node] = sorted(tree_choices, key=lambda node: (len(node), node))
        every: list[Node] = [(), *nodes]
        at = {node: i for i, node in enumerate(every)}
        if missing := [node for node in nodes if node[:-1] not in at]:
            raise ValueError(f"the nodes {missing} have no parent in the tree")
        depths = [len(node) for node in every]
        children = [[at[child] - 1 for child in nodes if child[:-1] == node] for node in every]
        counts = [len(found) for found in children]
        most = max(1, *counts)
        levels = [depths.count(depth) for depth in range(depths[-1] + 1)]
        sizes = list(accumulate(levels))
        leaves = [node for node, count in zip(every, counts, strict=True) if not count]
        paths = [[at[leaf[:depth]] for depth in range(len(leaf) + 1)] for leaf in leaves]

        def tensor(values: Sequence[object], kind: torch.dtype = torch.long) -> Tensor:
            return torch.tensor(values, dtype=kind, device=device)

        per_node, per_level = tensor(counts), tensor(levels)
        by_level = [per_node[start:stop] for start, stop in pairwise([0, *sizes])]
        return cls(
            tree_choices=nodes,
            attention_bias=_ancestors(every, at, dtype, device),
            tree_indices=tensor(_tokens(every)),
            retrieval_indices=tensor([path + [-1] * (depths[-1] + 1 - len(path)) for path in paths]),
            path_lengths=[len(path) for path in paths],
            tree_seq_position_ids=tensor(depths, torch.int32),
            parent_node_indices=tensor([at[node[:-1]] for node in nodes]),
            child_node_indices=tensor([[*found, *(found or [0])[-1:] * (most - len(found))] for found in children]),
            num_children_per_node=per_node,
            candidate_idx=tensor([children[at[node[:-1]]].index(at[node] - 1) for node in nodes]),
            num_nodes_per_level=per_level,
            num_nodes_per_level_cpu=per_level.cpu(),
            num_children_per_node_at_level=by_level,
            num_children_per_node_at_level_cpu=[row.cpu() for row in by_level],
            subtree_sizes=sizes,
        )


def _ancestors(
    every: Sequence[Node], at: dict[Node, int], dtype: torch.dtype | None, device: torch.device | None
) -> Tensor:
    bias = torch.full((len(every), len(every)), -torch.inf, dtype=dtype, device=device)
    for i, node in enumerate(every):
        bias[i, [at[node[:depth]] for depth in range(len(node) + 1)]] = 0
    return bias


def _tokens(every: Sequence[Node]) -> list[int]:
    """Which draft token each node is: child c of a level is token c, counted on from the last of the level above."""
    tokens, last = [0], 0
    for depth in range(1, len(every[-1]) + 1):
        level = [last + 1 + node[-1] for node in every if len(node) == depth]
        tokens += level
        last = max(level)
    return tokens


def tree_attention(
    q: Tensor,
    spec_k: Tensor,
    spec_v: Tensor,
    cache_k: Tensor,
    cache_v: Tensor,
    spec_attn_bias: Tensor,
    prefix_attn_bias: Varlen,
    prefix_op: type[AttentionFwOpBase] | None = None,
    suffix_op: type[AttentionFwOpBase] | None = None,
    autotune: bool = False,
    quantized_kv_scales: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attention of tree tokens to the cache and to each other, merged.

    Args:
        q: ``[B, Tq, H, K]`` or ``[B, Tq, G, H, K]``, the last Tq nodes of the tree.
        spec_k, spec_v: in the format of q, of all Tkv nodes.
        cache_k, cache_v: ``[B, Mk, ...]``, or ``[1, pages * page_size, ...]`` if the bias is paged.
        spec_attn_bias: ``[Tq, Tkv]``, as :class:`TreeAttnMetadata` has it.
        prefix_attn_bias: which keys of the cache there are; every query sees those of its sequence.
        prefix_op, suffix_op: operators of the two parts.
        autotune: changes nothing.
        quantized_kv_scales: must be None.

    Returns:
        In the shape of q.

    Raises:
        AssertionError: shapes that contradict each other.
        NotImplementedError: quantised caches.

    Example:
        >>> from xfn.compat.ops import fmha
        >>> tree = TreeAttnMetadata.from_tree_choices([(0,), (1,), (0, 0)])
        >>> q, k, v = torch.randn(3, 2, 4, 2, 8)
        >>> cache = fmha.attn_bias.BlockDiagonalPaddedKeysMask.from_seqlens([4, 4], 16, [9, 5])
        >>> tree_attention(q, k, v, *torch.randn(2, 2, 16, 2, 8), tree.attention_bias, cache).shape
        torch.Size([2, 4, 2, 8])
    """
    if quantized_kv_scales is not None:
        raise NotImplementedError("no operator takes a quantised cache")
    B, T, heads = q.shape[0], q.shape[1], q.shape[2:-1]
    pages = isinstance(prefix_attn_bias, Paged)
    if spec_attn_bias.shape != (T, spec_k.shape[1]) or spec_k.shape[1] < T:
        raise AssertionError(
            f"spec_attn_bias is [Tq, Tkv] with Tq <= Tkv, but it is {list(spec_attn_bias.shape)}, "
            f"q is {list(q.shape)} and spec_k is {list(spec_k.shape)}"
        )
    if spec_k.shape[2:] != q.shape[2:] or cache_k.shape[2:] != q.shape[2:] or cache_k.shape[0] != (1 if pages else B):
        raise AssertionError(
            f"q {list(q.shape)}, spec_k {list(spec_k.shape)} and cache_k {list(cache_k.shape)} contradict each other"
        )
    old = memory_efficient_attention_partial(
        _flat(q), _flat(cache_k), _flat(cache_v), attn_bias=prefix_attn_bias, op=prefix_op
    )
    prefix = old[0].unflatten(1, (B, T))[0], old[1][0].unflatten(-1, (B, T)).movedim(-2, 0)
    shown = spec_attn_bias.expand(B, *heads, *spec_attn_bias.shape)
    suffix = memory_efficient_attention_partial(q, spec_k, spec_v, shown, op=suffix_op)
    return merge_attentions([prefix[0], suffix[0]], [prefix[1], suffix[1]], output_dtype=q.dtype)[0]


def _flat(x: Tensor) -> Tensor:
    """Batches one after the other, with heads that are one, expanded, left so."""
    if x.dim() > 3 and x.shape[-2] > 1 and x.stride(-2) == 0:
        return x[..., :1, :].flatten(0, 1).unsqueeze(0).expand(1, -1, *x.shape[2:])
    return x.flatten(0, 1).unsqueeze(0)


def use_triton_splitk_for_prefix(B: int, G: int, tree_size: int) -> bool:
    """Whether a batch is so small that its caches' keys are shared out; a rule of thumb, which nothing here asks.

    Args:
        B: sequences.
        G: groups of heads.
        tree_size: nodes of the tree.

    Example:
        >>> use_triton_splitk_for_prefix(1, 1, 1000), use_triton_splitk_for_prefix(256, 1, 8)
        (True, False)
    """
    rows = B * G
    return rows < 2 or (rows < 4 and tree_size < 100) or (rows <= 128 and tree_size <= 64)


def construct_full_tree_choices(tree_depth: int, branching: int) -> list[Node]:
    """The nodes of a tree in which all but the leaves have as many children.

    Args:
        tree_depth: levels, without the root.
        branching: children of each.

    Example:
        >>> construct_full_tree_choices(2, 2)
        [(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]
    """
    return construct_tree_choices([branching] * tree_depth)


def construct_tree_choices(branching: Sequence[int]) -> list[Node]:
    """The nodes of a tree in which those of a level have as many children.

    Args:
        branching: children of each node, level by level from the root on.

    Example:
        >>> construct_tree_choices([2, 1])
        [(0,), (1,), (0, 0), (1, 0)]
    """
    return [node for i in range(len(branching)) for node in product(*map(range, branching[: i + 1]))]


def get_full_tree_size(tree_depth: int, branching: int) -> int:
    """Nodes of a full tree of so many levels, of which the root is one.

    Args:
        tree_depth: levels, with the root: one more than :func:`construct_full_tree_choices` takes.
        branching: children of each node but the leaves.

    Example:
        >>> get_full_tree_size(3, 2) == len(construct_full_tree_choices(2, 2)) + 1
        True
    """
    return sum(branching**i for i in range(tree_depth))
