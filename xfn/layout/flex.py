"""To and from the block masks of torch's flex_attention."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._core.errors import ShapeError
from .._core.tables import Lists
from .value import Layout, check_block

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def from_block_mask(block_mask: "BlockMask") -> Layout:
    """The layout that a block mask of flex_attention has: its full tiles, and its ``mask_mod`` in the others.

    Args:
        block_mask: of one example and square blocks.

    Raises:
        ShapeError: it differs between examples.
        ValueError: blocks that are not square, or of another size.

    Example:
        >>> from torch.nn.attention.flex_attention import create_block_mask
        >>> earlier = create_block_mask(lambda b, h, m, n: n <= m, None, None, 32, 32, "cpu", BLOCK_SIZE=16)
        >>> from_block_mask(earlier).to_mask()[:, 16].sum()
        tensor(16)
    """
    size = tuple(block_mask.BLOCK_SIZE)
    if size[0] != size[1]:
        raise ValueError(f"a layout has square tiles, but the block mask has {size[0]} by {size[1]}")
    check_block(size[0])
    examples = block_mask.kv_num_blocks.shape[0]
    if examples != 1:
        raise ShapeError(f"a layout serves all examples, but the block mask has its own for {examples}")
    partial, full = (tiles[0] for tiles in live(block_mask))
    lengths = (int(block_mask.seq_lengths[0]), int(block_mask.seq_lengths[1]))

    def keep(h: Tensor, m: Tensor, n: Tensor) -> Tensor:
        each = [t.flatten() for t in torch.broadcast_tensors(torch.zeros_like(h), h, m, n)]
        kept: Tensor = torch.func.vmap(block_mask.mask_mod)(*each)
        return kept.bool().reshape(torch.broadcast_shapes(h.shape, m.shape, n.shape))

    whole = Layout(full, size[0], lengths)
    if not partial.any():  # and torch maps no // over nothing
        return whole
    return whole | Layout(partial, size[0], lengths).with_mask(keep)


def to_block_mask(layout: Layout) -> "BlockMask":
    """The same as a block mask of flex_attention, whose ``mask_mod`` reads the layout's tiles and bits.

    Args:
        layout: of any block that flex_attention takes.

    Example:
        >>> from xfn.layout import causal
        >>> to_block_mask(causal(64, block=16)).full_kv_num_blocks
        tensor([[[1, 2, 3, 4]]], dtype=torch.int32)
    """
    from torch.nn.attention.flex_attention import BlockMask

    blocks, bits, size = layout.blocks, layout.bits, layout.block
    whole = Lists.of(blocks if bits is None else blocks & (bits.index < 0), None)
    part = Lists.of(torch.zeros_like(blocks) if bits is None else bits.index >= 0, None)

    def keep(b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
        h = h if layout.heads > 1 else torch.zeros_like(h)
        there = blocks[h, m // size, n // size]
        if bits is None:
            return there
        place = bits.index[h, m // size, n // size]
        word = bits.words[place.clamp(min=0), m % size, n % size // 32]
        return torch.where(place < 0, there, (word >> n % size % 32 & 1).bool())

    return BlockMask.from_kv_blocks(
        part.counts[None, ..., 1], part.index[None], whole.counts[None, ..., 1], whole.index[None],
        size, keep, layout.lengths,
    )  # fmt: skip


def live(block_mask: "BlockMask") -> tuple[Tensor, Tensor]:
    """Tiles ``[B, H, I, J]`` of a block mask that are live in part, and as a whole."""
    partial = _scattered(block_mask.kv_num_blocks, block_mask.kv_indices)
    if block_mask.full_kv_num_blocks is None or block_mask.full_kv_indices is None:
        return partial, torch.zeros_like(partial)
    return partial, _scattered(block_mask.full_kv_num_blocks, block_mask.full_kv_indices)


def _scattered(counts: Tensor, index: Tensor) -> Tensor:
    """Lists ``[B, H, I, J]`` as live tiles."""
    J = index.shape[-1]
    there = torch.arange(J, device=index.device) < counts[..., None]
    room = torch.zeros(*index.shape[:-1], J + 1, dtype=torch.bool, device=index.device)
    return room.scatter(-1, torch.where(there, index.long(), J), True)[..., :J]
