"""Models of Hugging Face's under this library's attention give what they give under their own, and gain derivatives."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap
from torch.utils import _pytree as tree

from xfn.compat.sdpa import sdpa
from xfn.compat.transformers import register

transformers = pytest.importorskip("transformers", reason="transformers is not installed: make oracle installs it")
register()

TOLERANCE = 1e-5  # most of these models take their own softmax in float32
BATCH, LENGTH, WIDTH = 2, 10, 16

SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40}
GATED = SIZES | {"intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 6, "use_cache": False}
WINDOWED = GATED | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
IMAGES = {"image_size": 12, "patch_size": 4, "num_channels": 2, "intermediate_size": 24}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GATED,
    "bert": SIZES | {"intermediate_size": 24},
    "vit": SIZES | IMAGES,
    "gpt2": {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "vocab_size": 40, "n_positions": 32, "use_cache": False},
    "qwen3": GATED,
    "mistral": GATED | {"sliding_window": 4},
    "gemma2": WINDOWED | {"attn_logit_softcapping": 0.05, "query_pre_attn_scalar": 6},
    "gpt_oss": WINDOWED | {"num_local_experts": 2, "num_experts_per_tok": 1},
    "modernbert": SIZES | {"intermediate_size": 24, "local_attention": 4, "global_attn_every_n_layers": 2,
                           "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
                           "sep_token_id": 2},
}  # fmt: skip
SUPPORTED = ("llama", "bert", "vit")
"""Those of which torch's own attention is an implementation, tried here."""


@cache
def made(family: str, implementation: str, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """A model with random weights, the same for each implementation."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family])
    choice = {"attn_implementation": implementation, "experts_implementation": "eager"}
    model = transformers.AutoModel.from_config(config, **choice).to(dtype).eval()
    for name, weight in model.named_parameters():
        if "sinks" in name or "q_proj" in name or "Wqkv" in name:
            torch.nn.init.normal_(weight)
    return model  # type: ignore[no-any-return]


def inputs(family: str) -> Tensor:
    shape = (BATCH, 2, 12, 12) if family == "vit" else (BATCH, LENGTH, WIDTH)
    return torch.randn(shape, dtype=torch.float64)


def called(family: str, implementation: str) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    model, name = made(family, implementation), "pixel_values" if family == "vit" else "inputs_embeds"

    def call(params: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Tensor = functional_call(model, params, (), {name: x})[0]
        return found

    return call


def parameters(family: str) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in made(family, "eager").named_parameters()}


Program = Callable[[Callable[..., Tensor], dict[str, Tensor], Tensor, Tensor], Any]


def loss(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda params, x: f(params, x).pow(3).sum()


PROGRAMS: dict[str, Program] = {
    "value": lambda f, params, x, t: f(params, x),
    "grad": lambda f, params, x, t: grad(loss(f))(params, x),
    "jvp": lambda f, params, x, t: jvp(lambda x: f(params, x), (x,), (t,))[1],
    "vmap(grad)": lambda f, params, x, t: vmap(grad(loss(f)), (None, 0))(params, x[:, None]),
    "double backward": lambda f, params, x, t: grad(lambda x: (grad(loss(f), 1)(params, x) * t).sum())(x),
}


def close(got: Any, want: Any) -> None:
    got, want = tree.tree_leaves(got), tree.tree_leaves(want)
    most = max(float(b.detach().abs().max()) for b in want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE * most)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_the_same(family: str, program: str) -> None:
    x = inputs(family)
    got, want = (
        partial(PROGRAMS[program], called(family, implementation), parameters(family), x, x.flip(1))
        for implementation in ("xfn", "eager")
    )
    if (family, program) == ("gpt_oss", "vmap(grad)"):  # its experts are chosen by numbers that vmap hides
        with pytest.raises(RuntimeError, match="item"):
            want()
        return
    close(got(), want())


@pytest.mark.parametrize("program", ["jvp", "vmap(grad)", "double backward"])
@pytest.mark.parametrize("family", SUPPORTED)
def test_torch_s_own_lacks_it_and_gains_it_in_the_scope(family: str, program: str) -> None:
    """Torch raises for want of a tangent and of a second derivative, and warns of a loop over examples."""
    x = inputs(family)
    f, params = called(family, "sdpa"), parameters(family)
    with pytest.raises(UserWarning if program == "vmap(grad)" else (RuntimeError, NotImplementedError)):
        PROGRAMS[program](f, params, x, x.flip(1))
    with sdpa():
        got = PROGRAMS[program](f, params, x, x.flip(1))
    close(got, PROGRAMS[program](called(family, "eager"), params, x, x.flip(1)))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "bert", "gemma2", "modernbert"])
def test_padding_is_hidden(family: str, side: str) -> None:
    """Held where there are tokens: of the others, models say nothing, and in float64 some give NaN."""
    there = torch.ones(BATCH, LENGTH, dtype=torch.long)
    there[0, :3] = 0
    there = there if side == "left" else there.flip(1)
    x = inputs(family).float()
    models = (made(family, implementation, torch.float32) for implementation in ("xfn", "eager"))
    close(*(model(inputs_embeds=x, attention_mask=there)[0][there.bool()] for model in models))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_decoding_with_a_cache_is_the_same(family: str) -> None:
    tokens, steps = torch.randint(40, (BATCH, 6)), []
    for implementation in ("xfn", "eager"):
        model = made(family, implementation)
        first = model(input_ids=tokens[:, :4], use_cache=True)
        rest = [model(input_ids=tokens[:, i : i + 1], past_key_values=first.past_key_values, use_cache=True)[0]
                for i in (4, 5)]  # fmt: skip
        steps.append([first[0], *rest])
    close(*steps)


def test_training_drops_and_is_seeded() -> None:
    config = transformers.AutoConfig.for_model("bert", **FAMILIES["bert"], hidden_dropout_prob=0.0)
    model, x = transformers.AutoModel.from_config(config, attn_implementation="xfn").train(), inputs("bert").float()
    torch.manual_seed(1)
    first, second = (model(inputs_embeds=x)[0] for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(model(inputs_embeds=x)[0], first)
    assert not torch.equal(first, second)


def test_the_name_may_be_another() -> None:
    register("exact")
    x = inputs("llama")
    close(made("llama", "exact")(inputs_embeds=x)[0], made("llama", "eager")(inputs_embeds=x)[0])
