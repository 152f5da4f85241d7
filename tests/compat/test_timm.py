"""Attention with a mask in the place of a vision transformer's own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from xfn.compat.timm import TimmSparseAttention, replace_attention
from xfn.sparsity import Csr

DIM, HEADS, LENGTH = 16, 4, 9


class Attention(nn.Module):
    """Attention as vision transformers have it: modules of these names."""

    def __init__(self, normed: bool = False) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv = nn.Linear(DIM, 3 * DIM, bias=False)
        self.q_norm = nn.LayerNorm(DIM // HEADS) if normed else nn.Identity()
        self.k_norm = nn.LayerNorm(DIM // HEADS) if normed else nn.Identity()
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(DIM, DIM)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).movedim(-3, 0).transpose(-2, -3)
        y = nn.functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, mask)
        return self.proj_drop(self.proj(y.transpose(-2, -3).flatten(-2)))  # type: ignore[no-any-return]


def replace_attn_with_xformers_one(module: Any, att_mask: Any) -> Any:
    """The page's own program."""
    module_output = module
    if isinstance(module, Attention):
        qkv = module.qkv
        dim = qkv.weight.shape[1] * module.num_heads
        module_output = TimmSparseAttention(dim, module.num_heads, attn_mask=att_mask)
    for name, child in module.named_children():
        module_output.add_module(name, replace_attn_with_xformers_one(child, att_mask))
    del module
    return module_output


MASK = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs() < 2
FORMS: dict[str, Any] = {
    "boolean": MASK,
    "added": torch.zeros(MASK.shape).masked_fill(~MASK, -torch.inf),
    "of heads": MASK.expand(HEADS, -1, -1),
    "sparse": MASK.float().to_sparse(),
    "csr": Csr.from_mask(MASK),
    "none": None,
}


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_page_s_replacement_keeps_the_weights(form: str, normed: bool) -> None:
    own = nn.Sequential(nn.Linear(DIM, DIM), Attention(normed))
    x = torch.randn(2, LENGTH, DIM)
    want = own[1](own[0](x), None if form == "none" else MASK)
    made = replace_attn_with_xformers_one(own, FORMS[form])
    assert isinstance(made[1], TimmSparseAttention)
    torch.testing.assert_close(made(x), want)
    assert not any("mask" in name for name in made.state_dict())


def test_it_gains_tangents() -> None:
    made, x = (
        TimmSparseAttention(DIM, HEADS, qkv_bias=True, attn_mask=MASK).double(),
        torch.randn(2, LENGTH, DIM).double(),
    )
    f = lambda x: functional_call(made, dict(made.named_parameters()), (x,))
    along = jvp(f, (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(along, (f(x + 1e-6) - f(x - 1e-6)) / 2e-6, rtol=1e-5, atol=1e-7)


def test_training_drops() -> None:
    made, x = TimmSparseAttention(DIM, HEADS, attn_drop=0.5, proj_drop=0.5), torch.randn(2, LENGTH, DIM)
    assert not torch.equal(made(x), made(x))
    assert torch.equal(made.eval()(x), made(x))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", ["boolean", "added", "none"])
def test_masks_of_a_call_are_joined_with_its_own(form: str, causal: bool) -> None:
    made, x = TimmSparseAttention(DIM, HEADS, attn_mask=FORMS[form]), torch.randn(2, LENGTH, DIM)
    given = torch.rand(2, 1, LENGTH, LENGTH) < 0.8
    made.register_buffer("attn_mask", None, persistent=False)
    own = torch.ones_like(MASK) if form == "none" else MASK
    want = made(x, attn_mask=(own.tril() if causal else own) & given)
    made.register_buffer("attn_mask", FORMS[form], persistent=False)
    torch.testing.assert_close(made(x, attn_mask=given, is_causal=causal), want)


def test_a_gate_is_applied() -> None:
    made, x, gate = TimmSparseAttention(DIM, HEADS), torch.randn(2, LENGTH, DIM), nn.Linear(DIM, DIM)
    own = made(x)
    made.add_module("gate", gate)
    nn.init.zeros_(gate.weight)
    nn.init.zeros_(gate.bias)
    torch.testing.assert_close(made(x) - made.proj.bias, (own - made.proj.bias) / 2)


def test_what_it_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match="sparse"):
        TimmSparseAttention(DIM, HEADS, attn_mask=FORMS["csr"])(torch.randn(2, LENGTH, DIM), is_causal=True)
    with pytest.raises(ValueError, match="no attention"):
        replace_attention(nn.Sequential(Attention()), MASK)
