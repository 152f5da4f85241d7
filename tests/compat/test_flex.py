"""flex_attention under its own name equals torch's, and differentiates where torch's does not."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.nn.attention import flex_attention as torchs
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, create_mask

from xfn import attention
from xfn.compat.flex import flex_attention, from_block_mask, from_mask_mod

B, H, M, K = 2, 4, 50, 8
DOCUMENTS = torch.tensor([0] * 13 + [1] * 20 + [2] * 17)
LENGTHS = torch.tensor([50, 31])


def causal(b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
    return m >= n


MODS: dict[str, tuple[Callable[..., Tensor], int | None, int | None]] = {
    "causal": (causal, None, None),
    "documents": (lambda b, h, m, n: (DOCUMENTS[m] == DOCUMENTS[n]) & (m >= n), None, None),
    "of heads": (lambda b, h, m, n: (m - n).abs() <= 3 * (h + 1), None, H),
    "of examples": (lambda b, h, m, n: n < LENGTHS[b], B, None),
    "of both": (lambda b, h, m, n: (n < LENGTHS[b]) & (m + h >= n), B, H),
    "joined": (torchs.and_masks(causal, lambda b, h, m, n: m - n < 20), None, None),
    "blind rows": (lambda b, h, m, n: (m != 3) & (n > 5), None, None),
}


def operands(heads: int = H) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(B, n, M, K) for n in (H, heads, heads))
    return q, k, v


@pytest.mark.parametrize("size", [16, (16, 32), 24], ids=str)
@pytest.mark.parametrize("mod", MODS)
def test_it_is_torch_s(mod: str, size: Any) -> None:
    mask_mod, batch, heads = MODS[mod]
    mask = create_block_mask(mask_mod, batch, heads, M, M, "cpu", BLOCK_SIZE=size)
    x = operands()
    out, aux = flex_attention(*x, block_mask=mask, return_aux=AuxRequest(lse=True))
    dense = create_mask(mask_mod, batch or 1, heads or 1, M, M, "cpu")
    want = torch.nn.functional.scaled_dot_product_attention(*x, dense.expand(B, H, M, M))
    torch.testing.assert_close(out, want)
    logits = torch.where(dense, K**-0.5 * x[0] @ x[1].mT, -torch.inf)
    torch.testing.assert_close(aux.lse, logits.logsumexp(-1))
    torch.testing.assert_close(
        attention(*(t.transpose(1, 2) for t in x), from_mask_mod(mask_mod, M, M, batch, heads)), want.transpose(1, 2)
    )


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_it_is_torch_s_own_function() -> None:
    """Where torch's runs on a CPU: the value, with lse and groups of heads."""
    x = operands(2)
    mask = create_block_mask(causal, None, None, M, M, "cpu", BLOCK_SIZE=16)
    options: dict[str, Any] = {"block_mask": mask, "scale": 0.3, "enable_gqa": True}
    with torch.no_grad():
        want = torchs.flex_attention(*x, **options)
    torch.testing.assert_close(flex_attention(*x, **options), want)
    with pytest.raises(NotImplementedError):
        torchs.flex_attention(x[0].requires_grad_(), *x[1:], **options).sum().backward()


def test_tiles_count_as_they_were_listed() -> None:
    """What is listed as full is full, whatever its ``mask_mod`` says, and what is not listed is not there."""
    counts, index = torch.tensor([[[1, 1]]]), torch.tensor([[[[0, 1], [1, 0]]]])
    no = torch.zeros_like(counts)
    for batch in (1, B):
        part, at, full, there = (t.expand(batch, *t.shape[1:]).int() for t in (no, index, counts, index))
        mask = BlockMask.from_kv_blocks(part, at, full, there, 32, causal, (M, M))
        q, k, v = operands()
        visible = torch.block_diag(torch.ones(32, 32), torch.ones(18, 18)).bool()
        want = torch.nn.functional.scaled_dot_product_attention(q, k, v, visible)
        torch.testing.assert_close(flex_attention(q, k, v, block_mask=mask), want)


def test_it_gains_every_transform() -> None:
    mask = from_block_mask(create_block_mask(MODS["documents"][0], None, None, M, M, "cpu", BLOCK_SIZE=16))
    dense, x = mask.to_mask(), tuple(t.double() for t in operands())
    ours = partial(flex_attention, block_mask=mask)
    theirs = lambda *x: torch.where(dense, K**-0.5 * x[0] @ x[1].mT, -torch.inf).softmax(-1) @ x[2]
    loss = lambda f: lambda *x: f(*x).pow(3).sum()
    programs: tuple[Callable[[Any], Any], ...] = (
        lambda f: jvp(f, x, x)[1],
        lambda f: vmap(grad(loss(f), (0, 1, 2)))(*x),
        lambda f: jvp(grad(loss(f)), x, x)[1],
    )
    for program in programs:
        torch.testing.assert_close(program(ours), program(theirs))


REFUSED: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "score_mod": (NotImplementedError, {"score_mod": lambda s, b, h, m, n: s}, "bias"),
    "max_scores": (NotImplementedError, {"return_aux": AuxRequest(max_scores=True)}, "max_scores"),
    "lengths": (ValueError, {"block_mask": create_block_mask(causal, None, None, 32, 32, "cpu")}, "M=50"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_there_is_refused(case: str) -> None:
    error, options, says = REFUSED[case]
    with pytest.raises(error, match=says):
        flex_attention(*operands(), **options)
    with pytest.raises(ValueError, match="enable_gqa"):
        flex_attention(*operands(2))
