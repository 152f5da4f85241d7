"""timm's vision transformers under this library's attention: what they give under their own, and derivatives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from xfn.compat.sdpa import sdpa
from xfn.compat.timm import TimmSparseAttention, replace_attention
from xfn.sparsity import Csr

from .torchvision import timm as without_torchvision

timm = without_torchvision()

SMALL = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 4, "num_classes": 5}
LENGTH = 1 + (32 // 8) ** 2
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "normed": {"qk_norm": True, "scale_attn_norm": True},
    "dropping": {"attn_drop_rate": 0.3},
}
ROUTES = ("replaced", "scope")
MASK = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs() < 4


def model(**options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    made = timm.create_model("vit_tiny_patch16_224", **SMALL, **options)
    return made.double().eval()  # type: ignore[no-any-return]


Program = Callable[[Callable[..., Tensor], dict[str, Tensor], Tensor], Any]


def loss(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda params, x: f(params, x).pow(3).sum()


PROGRAMS: dict[str, Program] = {
    "value": lambda f, params, x: f(params, x),
    "jvp": lambda f, params, x: jvp(lambda x: f(params, x), (x,), (x.flip(-1),))[1],
    "vmap(grad)": lambda f, params, x: vmap(grad(loss(f)), (None, 0))(params, x[:, None]),
    "double backward": lambda f, params, x: grad(lambda x: (grad(loss(f), 1)(params, x) * x.flip(-1)).sum())(x),
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_the_same_and_gains_what_it_lacks(kind: str, route: str, program: str) -> None:
    """Held against torch's plain attention; torch raises for want of derivatives, and warns of a loop over examples."""
    own, x = model(**KINDS[kind]), torch.randn(3, 3, 32, 32, dtype=torch.float64)
    params = {name: p.detach() for name, p in own.named_parameters()}
    run = lambda made: PROGRAMS[program](lambda params, x: functional_call(made, params, (x,)), params, x)
    with sdpa_kernel(SDPBackend.MATH):
        want = run(own)
    if program != "value":
        with pytest.raises(UserWarning if program == "vmap(grad)" else (RuntimeError, NotImplementedError)):
            run(own)
    if route == "scope":
        with sdpa():
            got = run(own)
    else:
        got = run(replace_attention(own))
    torch.testing.assert_close(got, want)


def test_replacing_keeps_parameters_and_modes() -> None:
    own = model(**KINDS["dropping"])
    before = dict(own.named_parameters())
    optimiser = torch.optim.SGD(own.parameters(), 0.1)
    state = torch.get_rng_state()
    assert replace_attention(own, MASK) is own
    assert torch.equal(state, torch.get_rng_state())
    after = dict(own.named_parameters())
    assert before.keys() == after.keys() == own.state_dict().keys()
    assert all(after[name] is p for name, p in before.items())
    assert not any(module.training for module in own.modules())
    own(torch.randn(1, 3, 32, 32).double()).sum().backward()
    optimiser.step()
    x = torch.randn(1, 3, 32, 32).double()
    assert torch.equal(own(x), own(x))
    own.train()
    assert not torch.equal(own(x), own(x))


FORMS: dict[str, Any] = {
    "boolean": MASK,
    "of heads": MASK.expand(4, -1, -1),
    "sparse": MASK.float().to_sparse(),
    "csr": Csr.from_mask(MASK),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_is_that_of_every_layer(form: str) -> None:
    own, x = model(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        want = own.forward_features(x, attn_mask=MASK)  # type: ignore[operator]
    made = replace_attention(own, FORMS[form])
    assert sum(type(module) is TimmSparseAttention for module in made.modules()) == SMALL["depth"]
    torch.testing.assert_close(made.forward_features(x), want)  # type: ignore[operator]
    again = replace_attention(made)
    torch.testing.assert_close(again.forward_features(x, attn_mask=MASK), want)  # type: ignore[operator]


def test_a_model_without_them_is_refused() -> None:
    with pytest.raises(ValueError, match="no attention"):
        replace_attention(timm.create_model("poolformer_s12", num_classes=2), MASK)
