"""Every layout against its definition, by tile or by coefficient, and the rules by which layouts combine."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.utils import _pytree as tree

import xfn
from benchmarks.measure import MIB, peak_bytes
from xfn import KeyRequired, ShapeError, layout, random
from xfn._core.tables import BLOCKS, pack, unpack
from xfn.layout import Layout

KEY = random.key(0)
Sees = Callable[[int, int], bool]


def tiles(M: int, N: int, block: int, live: Callable[[int, int], bool]) -> Tensor:
    """The mask of whole tiles (i, j) that are live."""
    return torch.tensor([[live(m // block, n // block) for n in range(N)] for m in range(M)]).reshape(M, N)


def held(M: int, N: int, block: int, sees: Sees) -> Tensor:
    """The mask of the tiles that hold a coefficient that is seen."""
    some = {(m // block, n // block) for m in range(M) for n in range(N) if sees(m, n)}
    return tiles(M, N, block, lambda i, j: (i, j) in some)


def each(M: int, N: int, sees: Sees) -> Tensor:
    return torch.tensor([[sees(m, n) for n in range(N)] for m in range(M)]).reshape(M, N)


CASES: dict[str, tuple[Layout, Tensor]] = {
    "dense": (layout.dense(20, 33, block=8), torch.ones(20, 33).bool()),
    "causal": (layout.causal(50, block=16), held(50, 50, 16, lambda m, n: n <= m)),
    "causal, wide": (layout.causal(20, 50, block=16), held(20, 50, 16, lambda m, n: n <= m)),
    "bottom-right": (
        layout.causal(20, 50, block=8, corner="bottom-right"),
        held(20, 50, 8, lambda m, n: n - 50 <= m - 20),
    ),
    "local": (layout.local(70, block=16, window=20), held(70, 70, 16, lambda m, n: abs(m - n) < 20)),
    "local, own": (layout.local(70, 40, block=8, window=1), held(70, 40, 8, lambda m, n: m == n)),
    "causal and local": (
        layout.causal(64, block=16) & layout.local(64, block=16, window=32),
        tiles(64, 64, 16, lambda i, j: i - 2 <= j <= i),
    ),
    "strided": (layout.strided(50, block=8, stride=7), each(50, 50, lambda m, n: n <= m and (m - n) % 7 == 0)),
    "strided, wide": (
        layout.strided(30, 50, block=16, stride=40),
        each(30, 50, lambda m, n: n <= m and (m - n) % 40 == 0),
    ),
    "strided by one": (layout.strided(40, 20, block=8, stride=1), each(40, 20, lambda m, n: n <= m)),
    "fixed": (
        layout.fixed(90, block=8, window=32),
        tiles(90, 90, 8, lambda i, j: j <= i and (i // 4 == j // 4 or j % 4 == 3 or (j == 11))),
    ),
    "global": (
        layout.global_(40, 70, block=8, tokens=torch.tensor([0, 33, 60])),
        tiles(40, 70, 8, lambda i, j: i in (0, 4) or j in (0, 4, 7)),
    ),
    "nothing": (~layout.dense(9, 17, block=8), torch.zeros(9, 17).bool()),
    "no queries": (layout.causal(0, 17, block=8), torch.zeros(0, 17).bool()),
    "no keys": (layout.local(17, 0, block=8, window=3), torch.zeros(17, 0).bool()),
}


@pytest.mark.parametrize("name", CASES)
def test_is_its_definition(name: str) -> None:
    made, want = CASES[name]
    assert torch.equal(made.to_mask(), want)
    assert made.blocks.shape[-2:] == (-(-made.M // made.block), -(-made.N // made.block))


# Drawn as the sparsity configurations of published models draw them; each row of tiles a word.

GOLDEN = {
    "fixed": "11110001 11110001 11110001 11110001 00011111 00011111 00011111 00011111",
    "fixed, causal": "10000000 11000000 11100000 11110000 00011000 00011100 00011110 00011111",
    "fixed, second head": "11110010 11110010 11110010 11110010 00101111 00101111 00101111 00101111",
    "fixed, horizontal": "11110001 11110001 11110001 11111111 00011111 00011111 00011111 11111111",
    "fixed, short": "1111000101 1111000101 1111000101 1111000101 0001111101 0001111101 0001111101 0001111101 "
    "0001000111 0001000111",
    "variable": "11110000 11110000 11110000 11110000 10001111 10001111 10001111 10001111",
    "variable, causal": "10000000 11000000 10100000 10110000 10001000 10000100 10000110 10000001",
    "variable, ranges": "11110110 11110110 11110110 11110110 00001111 00001111 00001111 00001111",
    "longformer": "11111111 11100000 11110000 10111000 10011100 10001110 10000111 10000011",
    "bigbird": "11111111 11100000 11110000 10111000 10011100 10001110 10000111 10000011",
    "bigbird, causal": "10000000 11000000 11100000 10110000 10011000 10001100 10000110 10000011",
}
DRAWN = {
    "fixed": layout.fixed(128, block=16, window=64, causal=False),
    "fixed, causal": layout.fixed(128, block=16, window=64),
    "fixed, second head": layout.fixed(128, block=16, window=64, verts=2, heads=2, causal=False),
    "fixed, horizontal": layout.fixed(128, block=16, window=64, causal=False, horizontal=True),
    "fixed, short": layout.fixed(160, block=16, window=64, causal=False),
    "variable": layout.variable(128, block=16),
    "variable, causal": layout.variable(128, block=16, windows=[2, 2, 1, 2], causal=True),
    "variable, ranges": layout.variable(128, block=16, hubs=[(5, 7)]),
    "longformer": layout.longformer(128, block=16),
    "bigbird": layout.bigbird(128, block=16, random=0),
    "bigbird, causal": layout.bigbird(128, block=16, random=0, causal=True),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_is_as_drawn(name: str) -> None:
    rows = ["".join(str(int(x)) for x in row) for row in DRAWN[name].blocks[-1]]
    assert " ".join(rows) == GOLDEN[name]


def test_heads_of_fixed_take_their_summaries_in_turn() -> None:
    made = layout.fixed(128, block=8, window=64, verts=4, vertsize=2, heads=8)
    for h in range(8):
        summaries = {j for j in range(8) if made.blocks[h, 8 + 7, j]}
        assert summaries == {6 - 2 * (h % 4), 7 - 2 * (h % 4)}


def test_random_layouts_are_functions_of_their_key() -> None:
    draw = lambda seed: layout.random(300, 500, block=16, density=0.3, heads=3, key=random.key(seed))
    one = draw(0)
    assert torch.equal(one.blocks, draw(0).blocks)
    assert not torch.equal(one.blocks, draw(1).blocks)
    assert not torch.equal(one.blocks[0], one.blocks[1])
    assert one.density == round(0.3 * 32 * 19) / (32 * 19)
    counts = one.rows.counts[..., 1]  # type: ignore[union-attr]
    assert counts.max() - counts.min() <= 1
    for causal in (False, True):
        bird = layout.bigbird(160, block=16, random=2, causal=causal, heads=2, key=KEY)
        plain = layout.bigbird(160, block=16, random=0, causal=causal)
        assert (bird.blocks | plain.blocks).equal(bird.blocks)
        assert bird.density > plain.density
        assert not causal or not bird.blocks.triu(1).any()
    assert layout.random(64, block=16, density=1.0, key=KEY).density == 1


# Masks of coefficients.


def drawn(*shape: int, p: float = 0.5) -> Tensor:
    """Booleans, with whole tiles of 8 that are live or dead throughout among them."""
    M, N = shape[-2:]
    coarse = torch.rand(*shape[:-2], -(-M // 8), -(-N // 8))
    wide = coarse.repeat_interleave(8, -2)[..., :M, :].repeat_interleave(8, -1)[..., :N]
    return torch.where(wide < 0.3, False, torch.where(wide > 0.7, True, torch.rand(*shape) < p))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shape", [(40, 70), (3, 33, 64), (2, 128, 128), (0, 5), (2, 7, 0)], ids=str)
def test_a_mask_is_kept_coefficient_by_coefficient(shape: tuple[int, ...], block: int) -> None:
    mask = drawn(*shape)
    made = layout.from_mask(mask, block)
    assert torch.equal(made.to_mask(), mask)
    assert torch.equal((~made).to_mask(), ~mask)
    assert torch.equal(made.transpose().to_mask(), mask.mT)
    assert torch.equal(made.transpose().transpose().to_mask(), mask)
    if made.bits is not None:
        partial = made.bits.index >= 0
        assert len(made.bits.words) == partial.sum()  # no tile that is full or dead has bits
        assert not (partial & ~made.blocks).any()


@pytest.mark.parametrize("block", [8, 32])
def test_layouts_combine_as_their_masks_do(block: int) -> None:
    masks = [drawn(50, 70), drawn(2, 50, 70, p=0.9), torch.ones(50, 70).bool(), torch.zeros(50, 70).bool()]
    masks.append(layout.causal(50, 70, block=block).to_mask())
    for a in masks:
        for b in masks:
            one, two = layout.from_mask(a, block), layout.from_mask(b, block)
            for got, want in ((one & two, a & b), (one | two, a | b), (one & ~two, a & ~b)):
                assert torch.equal(got.to_mask(), want)
                assert torch.equal(got.blocks, layout.from_mask(want, block).blocks)


def test_a_callback_is_asked_about_live_tiles_alone() -> None:
    made, asked = layout.causal(50, block=16).per_head(3), []

    def keep(h: Tensor, m: Tensor, n: Tensor) -> Tensor:
        asked.append(torch.broadcast_shapes(h.shape, m.shape, n.shape).numel())
        return (m + n + h) % 3 == 0

    trimmed = made.with_mask(keep)
    assert sum(asked) == made.blocks.sum() * 16 * 16
    h, m, n = torch.meshgrid(torch.arange(3), torch.arange(50), torch.arange(50), indexing="ij")
    assert torch.equal(trimmed.to_mask(), made.to_mask() & ((m + n + h) % 3 == 0))
    twice = trimmed.with_mask(lambda h, m, n: n > 7)
    assert torch.equal(twice.to_mask(), trimmed.to_mask() & (torch.arange(50) > 7))
    assert not made.with_mask(lambda h, m, n: n < 0).blocks.any()
    assert made.with_mask(lambda h, m, n: n >= 0).bits is None


def test_strided_tiles_share_their_bits() -> None:
    made = layout.strided(1024, block=16, stride=24)
    assert made.bits is not None
    assert len(made.bits.words) <= 64


def test_heads_are_stacked() -> None:
    masks = [drawn(40, 40), drawn(2, 40, 40), torch.ones(40, 40).bool()]
    made = layout.stack([layout.from_mask(m, 8) for m in masks])
    assert torch.equal(made.to_mask(), torch.cat([masks[0][None], masks[1], masks[2][None]]))
    assert torch.equal(made.per_head(4).to_mask(), made.to_mask())


def test_words_are_packed_bit_by_bit() -> None:
    for block in BLOCKS:
        seen = torch.rand(3, block, block) < 0.5
        words = pack(seen)
        assert torch.equal(unpack(words, block), seen)
        for i, n in ((0, 0), (1, block - 1), (block - 1, block // 2)):
            assert bool(words[2, i, n // 32] >> (n % 32) & 1) == seen[2, i, n]


# The look-up tables.


@pytest.mark.parametrize("shape", [(40, 70), (3, 100, 64), (2, 0, 9)], ids=str)
def test_the_lists_name_full_tiles_and_then_partial_ones(shape: tuple[int, ...]) -> None:
    made = layout.from_mask(drawn(*shape), 8)
    partial = torch.zeros_like(made.blocks) if made.bits is None else made.bits.index >= 0
    for lists, blocks, part in ((made.rows, made.blocks, partial), (made.columns, made.blocks.mT, partial.mT)):
        assert lists is not None
        heads, rows, _ = blocks.shape
        for h in range(heads):
            for i in range(rows):
                full, live = lists.counts[h, i].tolist()
                want = [*(blocks & ~part)[h, i].nonzero().flatten(), *part[h, i].nonzero().flatten()]
                assert lists.index[h, i, :live].tolist() == [int(j) for j in want]
                assert full == (blocks & ~part)[h, i].sum()
        lengths = lists.counts[..., 1].flatten()[lists.order.long()]
        assert torch.equal(lengths, lengths.sort(descending=True).values)
        assert torch.equal(lists.order.sort().values, torch.arange(heads * rows, dtype=torch.int32))


BIG = {
    "blocks": lambda: Layout(torch.ones(1, 1).bool().expand(16, 512, 512), 128),
    "random": lambda: layout.random(65536, block=128, density=0.1, heads=16, key=KEY),
    "fixed": lambda: layout.fixed(65536, block=128, window=1024, verts=8, heads=16),
    "strided": lambda: layout.strided(65536, block=128, stride=100),
    "bigbird": lambda: layout.bigbird(65536, block=128, heads=16, key=KEY),
    "both": lambda: (
        layout.causal(65536, block=128).per_head(16) & layout.local(65536, block=128, window=4096)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BIG)
def test_no_dense_matrix_is_needed_to_build_one(name: str) -> None:
    """64 Ki by 64 Ki tokens, 16 heads: one such mask of booleans would be 64 GiB."""
    held: list[Any] = []
    peak = peak_bytes(lambda: held.append(BIG[name]()))
    peak += sum(t.untyped_storage().nbytes() for t in tree.tree_leaves(held))
    assert peak < 200 * MIB, f"{peak / MIB:.0f} MiB"


# A value among values.


def test_a_layout_is_a_tree() -> None:
    made = layout.from_mask(drawn(20, 30), 8)
    leaves, spec = tree.tree_flatten(made)
    assert all(isinstance(t, Tensor) for t in leaves)
    again = tree.tree_unflatten(leaves, spec)
    assert (again.M, again.N, again.block) == (20, 30, 8)
    assert torch.equal(again.to_mask(), made.to_mask())
    assert torch.equal(made.to("cpu").to_mask(), made.to_mask())
    assert repr(made) == "Layout(M=20, N=30, block=8, with bits)"


def test_layouts_are_mapped_like_any_tree() -> None:
    q = torch.randn(3, 20, 2, 4)
    blocks = torch.rand(3, 1, 3, 3) < 0.5
    one = lambda blocks, q: xfn.blocksparse_attention(Layout(blocks, 8, (20, 20)), q, q, q)
    want = torch.stack([one(b, x) for b, x in zip(blocks, q, strict=True)])
    torch.testing.assert_close(func.vmap(one)(blocks, q), want)
    stacked = func.vmap(lambda b: Layout(b, 8, (20, 20)))(blocks)
    torch.testing.assert_close(func.vmap(xfn.blocksparse_attention)(stacked, q, q, q), want)
    shared = layout.from_mask(drawn(20, 20), 8)
    got = func.vmap(xfn.blocksparse_attention, (None, 0, 0, 0))(shared, q, q, q)
    torch.testing.assert_close(got, xfn.blocksparse_attention(shared, q, q, q))


def test_a_layout_is_built_in_a_compiled_function() -> None:
    def f(blocks: Tensor, q: Tensor) -> Tensor:
        return xfn.blocksparse_attention(Layout(blocks, 8, (20, 20)) & layout.causal(20, block=8), q, q, q)

    q, blocks = torch.randn(20, 2, 4), torch.rand(3, 3) < 0.7
    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(blocks, q), f(blocks, q))


# flex_attention's block masks.


@pytest.mark.parametrize(("M", "N"), [(64, 64), (50, 90)])
def test_block_masks_come_and_go(M: int, N: int) -> None:
    from torch.nn.attention.flex_attention import create_block_mask, create_mask

    offset = torch.tensor([0, 5])
    keep = lambda b, h, m, n: (n <= m + offset[h]) & (n > m - 20)
    theirs = create_block_mask(keep, None, 2, M, N, device="cpu", BLOCK_SIZE=16)
    ours = layout.from_block_mask(theirs)
    want = create_mask(keep, 1, 2, M, N, device="cpu")[0].bool()
    assert torch.equal(ours.to_mask(), want)
    back = layout.to_block_mask(ours)
    assert torch.equal(layout.from_block_mask(back).to_mask(), want)
    assert torch.equal(create_mask(back.mask_mod, 1, 2, M, N, device="cpu")[0].bool(), want)
    for whole in (layout.local(M, N, block=16, window=16), layout.Layout(ours.blocks, 16, (M, N)), ours & ~ours):
        back = layout.to_block_mask(whole)
        assert torch.equal(layout.from_block_mask(back).to_mask(), whole.to_mask())
        assert torch.equal(
            create_mask(back.mask_mod, 1, 2, M, N, device="cpu")[0].bool(), whole.to_mask().expand(2, M, N)
        )


# Errors.

FLAT = layout.dense(64, block=16)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: layout.causal(64, block=24), ValueError, "block=24 is not one of 8, 16, 32, 64, 128"),
        (lambda: Layout(torch.ones(4, 4), 16), TypeError, "blocks is torch.float32, but must be boolean"),
        (lambda: Layout(torch.ones(4).bool(), 16), ShapeError, "[M/16, N/16] or [H, M/16, N/16], but got [4]"),
        (lambda: Layout(torch.ones(0, 4, 4).bool(), 16), ShapeError, "but got [0, 4, 4]"),
        (lambda: Layout(torch.ones(3, 4).bool(), 16, (64, 64)), ShapeError, "blocks has M/16=3, but M=64 needs 4"),
        (lambda: FLAT | layout.dense(60, block=16), ShapeError, "do not combine: they differ in M, N, block or H"),
        (lambda: FLAT.per_head(2) & FLAT.per_head(3), ShapeError, "do not combine"),
        (
            lambda: FLAT & FLAT.to_mask(),  # type: ignore[operator]
            TypeError,
            "combines with a layout, not with Tensor: write from_mask(mask)",
        ),
        (lambda: FLAT.per_head(2).per_head(3), ShapeError, "has H=2 already, and not H=3"),
        (lambda: layout.stack([FLAT, layout.dense(60, block=16)]), ShapeError, "can be stacked"),
        (lambda: layout.from_mask(torch.ones(4, 4), 8), TypeError, "boolean tensor, but got torch.float32"),
        (lambda: layout.from_mask(torch.ones(4).bool(), 8), ShapeError, "[M, N] or [H, M, N], but got [4]"),
        (lambda: FLAT.with_mask(lambda h, m, n: m - n), TypeError, "boolean tensor is True, but got torch.int64"),
        (lambda: layout.causal(-1, block=8), ValueError, "M=-1 is no length"),
        (lambda: layout.local(64, block=8, window=0), ValueError, "window=0 must be at least 1"),
        (lambda: layout.fixed(64, block=16, window=40), ValueError, "window=40 is not a multiple of block=16"),
        (lambda: layout.fixed(64, block=16, window=64, verts=3, vertsize=2), ValueError, "do not fit"),
        (lambda: layout.fixed(64, block=16, window=64, verts=2, heads=3), ValueError, "heads=3 is not a multiple"),
        (lambda: layout.fixed(64, block=16, window=64, horizontal=True), ValueError, "write causal=False"),
        (lambda: layout.random(64, block=16, density=0.5), KeyRequired, "pass key=random.key(seed)"),
        (lambda: layout.random(64, block=16, density=1.5, key=KEY), ValueError, "density=1.5 must lie in [0, 1]"),
        (lambda: layout.bigbird(64, block=16), KeyRequired, "needs a key: pass key=random.key(seed)"),
        (
            lambda: layout.bigbird(64, block=16, random=5, key=KEY),
            ValueError,
            "random=5 must lie between 0 and length=4",
        ),
        (lambda: layout.bigbird(64, block=16, random=0, hubs=5), ValueError, "hubs=5 must lie between 0 and length=4"),
        (lambda: layout.longformer(64, block=16, window=2), ValueError, "window=2 has no middle"),
        (lambda: layout.longformer(64, block=16, hubs=[4]), ValueError, "hub 4 is not among the 4 places"),
        (lambda: layout.variable(64, block=16, windows=[]), ValueError, "windows=[] must be at least one size"),
        (lambda: layout.global_(64, block=16, tokens=[64]), ValueError, "tokens=[64] are no positions among M=64"),
        (lambda: layout.global_(64, block=16, tokens=torch.ones(64).bool()), TypeError, "write tokens=mask.nonzero()"),
    ],
)
def test_errors_say_what_to_write(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)):
        call()


def test_heads_that_are_live_apart_in_the_largest_tiles() -> None:
    """Four heads of sixteen queries lie in one tile of lanes, and each tile of keys fills a block."""
    live = torch.tensor([[1, 1], [0, 1], [1, 1], [0, 0]], dtype=torch.bool)
    of = layout.from_mask(live[:, None].repeat_interleave(16, 1).repeat_interleave(128, 2), block=128)
    q, k, v = torch.randn(16, 4, 8), torch.randn(256, 1, 8), torch.randn(256, 1, 8)
    ways = (xfn.blocksparse_attention(of, q, k, v, backend=backend) for backend in (None, "reference"))
    torch.testing.assert_close(*ways)
