"""Layouts of blocks from configs: int64 ``[H, S/b, S/b]``."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .... import patterns
from ..._drawn import drawn


class SparsityConfig:
    """Heads, the size of a block, and whether heads differ."""

    def __init__(self, num_heads: int, block_size: int = 16, different_layout_per_head: bool = False) -> None:
        self.num_heads, self.block_size = num_heads, block_size
        self.different_layout_per_head = different_layout_per_head

    def setup_layout(self, seq_len: int) -> Tensor:
        """No blocks yet.

        Raises:
            ValueError: blocks do not divide the sequence.
        """
        if seq_len % self.block_size:
            raise ValueError(f"seq_len={seq_len} must be a multiple of block_size={self.block_size}")
        n = seq_len // self.block_size
        return torch.zeros(self.num_heads, n, n, dtype=torch.int64)

    def make_layout(self, seq_len: int) -> Tensor:
        """The layout for a sequence.

        Raises:
            ValueError: blocks do not divide it, or there are fewer than the config asks for.
        """
        H, n, _ = self.setup_layout(seq_len).shape
        heads = [self._head(n, h) for h in range(H if self.different_layout_per_head else 1)]
        return torch.stack(heads).expand(H, n, n).long().clone()

    def _head(self, n: int, h: int) -> Tensor:
        raise NotImplementedError


class DenseSparsityConfig(SparsityConfig):
    """All blocks."""

    def __init__(self, num_heads: int, block_size: int = 16, different_layout_per_head: bool = False) -> None:
        super().__init__(num_heads, block_size, different_layout_per_head)

    def _head(self, n: int, h: int) -> Tensor:
        return torch.ones(n, n, dtype=torch.bool)


class FixedSparsityConfig(SparsityConfig):
    """Windows, whose last blocks all see."""

    def __init__(
        self,
        num_heads: int,
        block_size: int = 16,
        different_layout_per_head: bool = False,
        num_local_blocks: int = 4,
        num_global_blocks: int = 1,
        attention: str = "bidirectional",
        horizontal_global_attention: bool = False,
        num_different_global_patterns: int = 1,
    ) -> None:
        super().__init__(num_heads, block_size, different_layout_per_head)
        if num_local_blocks % num_global_blocks:
            raise ValueError(f"num_global_blocks={num_global_blocks} must divide num_local_blocks={num_local_blocks}")
        self.causal = _causal(attention, horizontal_global_attention)
        if num_different_global_patterns > 1 and not different_layout_per_head:
            raise ValueError("patterns differ where heads do: pass different_layout_per_head=True")
        if num_different_global_patterns > num_local_blocks // num_global_blocks:
            raise ValueError(
                f"num_different_global_patterns={num_different_global_patterns} exceeds the "
                f"{num_local_blocks // num_global_blocks} that a window has"
            )
        self.num_local_blocks, self.num_global_blocks, self.attention = num_local_blocks, num_global_blocks, attention
        self.horizontal_global_attention = horizontal_global_attention
        self.num_different_global_patterns = num_different_global_patterns

    def _head(self, n: int, h: int) -> Tensor:
        group = h % self.num_different_global_patterns
        numbers = (n, self.num_local_blocks, self.num_global_blocks, group)
        return patterns.fixed(*numbers, causal=self.causal, horizontal=self.horizontal_global_attention)


class VariableSparsityConfig(SparsityConfig):
    """Windows of several sizes, blocks that all see, and some by chance."""

    def __init__(
        self,
        num_heads: int,
        block_size: int = 16,
        different_layout_per_head: bool = False,
        num_random_blocks: int = 0,
        local_window_blocks: Sequence[int] = (4,),
        global_block_indices: Sequence[int] = (0,),
        global_block_end_indices: Sequence[int] | None = None,
        attention: str = "bidirectional",
        horizontal_global_attention: bool = False,
    ) -> None:
        super().__init__(num_heads, block_size, different_layout_per_head)
        self.causal = _causal(attention, horizontal_global_attention)
        self.num_random_blocks, self.local_window_blocks = num_random_blocks, local_window_blocks
        self._hubs = _hubs(global_block_indices, global_block_end_indices)
        self.attention, self.horizontal_global_attention = attention, horizontal_global_attention

    def _head(self, n: int, h: int) -> Tensor:
        random = _at_most("num_random_blocks", self.num_random_blocks, n)
        make = lambda r, key: patterns.variable(
            n, self.local_window_blocks, self._hubs(n), r,
            causal=self.causal, horizontal=self.horizontal_global_attention, key=key,
        )  # fmt: skip
        return _by_chance(make, n, random, self.causal)


class BigBirdSparsityConfig(SparsityConfig):
    """Neighbours, the first blocks, and some by chance."""

    def __init__(
        self,
        num_heads: int,
        block_size: int = 16,
        different_layout_per_head: bool = False,
        num_random_blocks: int = 1,
        num_sliding_window_blocks: int = 3,
        num_global_blocks: int = 1,
        attention: str = "bidirectional",
    ) -> None:
        super().__init__(num_heads, block_size, different_layout_per_head)
        self.causal = _causal(attention)
        self.num_random_blocks, self.num_sliding_window_blocks = num_random_blocks, num_sliding_window_blocks
        self.num_global_blocks, self.attention = num_global_blocks, attention

    def _head(self, n: int, h: int) -> Tensor:
        random = _at_most("num_random_blocks", self.num_random_blocks, n)
        window = _at_most("num_sliding_window_blocks", self.num_sliding_window_blocks, n) // 2 * 2 + 1
        hubs = _at_most("num_global_blocks", self.num_global_blocks, n)
        make = lambda r, key: patterns.bigbird(n, window, hubs, r, causal=self.causal, key=key)
        return _by_chance(make, n, random, self.causal)


class BSLongformerSparsityConfig(SparsityConfig):
    """Neighbours, and blocks that see all and are seen by all."""

    def __init__(
        self,
        num_heads: int,
        block_size: int = 16,
        different_layout_per_head: bool = False,
        num_sliding_window_blocks: int = 3,
        global_block_indices: Sequence[int] = (0,),
        global_block_end_indices: Sequence[int] | None = None,
        attention: str = "bidirectional",
    ) -> None:
        super().__init__(num_heads, block_size, different_layout_per_head)
        self.causal = _causal(attention)
        self.num_sliding_window_blocks, self.attention = num_sliding_window_blocks, attention
        self._hubs = _hubs(global_block_indices, global_block_end_indices)

    def _head(self, n: int, h: int) -> Tensor:
        window = _at_most("num_sliding_window_blocks", self.num_sliding_window_blocks, n) // 2 * 2 + 1
        return patterns.longformer(n, window, self._hubs(n), causal=self.causal)


def _causal(attention: str, horizontal: bool = False) -> bool:
    if attention not in ("unidirectional", "bidirectional"):
        raise NotImplementedError(f"attention={attention!r} is neither 'unidirectional' nor 'bidirectional'")
    if horizontal and attention == "unidirectional":
        raise ValueError("horizontal_global_attention shows the future, which attention='unidirectional' hides")
    return attention == "unidirectional"


def _at_most(name: str, count: int, n: int) -> int:
    if count > n:
        raise ValueError(f"{name}={count} exceeds the {n} blocks of the sequence")
    return count


def _hubs(starts: Sequence[int], ends: Sequence[int] | None) -> Callable[[int], list[Any]]:
    """Which blocks all see, of those that a sequence has."""
    if ends is not None:
        if len(ends) != len(starts):
            raise ValueError(f"there are {len(starts)} global_block_indices, but {len(ends)} ends")
        if any(a >= b for a, b in zip(starts, ends, strict=True)):
            raise ValueError(f"global_block_indices={list(starts)} must lie before their ends {list(ends)}")
    spans = [(a, a + 1) for a in starts] if ends is None else list(zip(starts, ends, strict=True))
    return lambda n: [(a, min(b, n)) for a, b in spans if a < n]


def _by_chance(make: Callable[[int, Any], Tensor], n: int, random: int, causal: bool) -> Tensor:
    return make(random, drawn() if random else None)
