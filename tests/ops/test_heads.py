"""Many heads are torch's own after a copy of its weights, and attend with whatever attends."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, func

import xfn
from xfn import bias, random
from xfn._core.errors import ShapeError

from ..cases import agree


def copied(theirs: torch.nn.MultiheadAttention) -> Any:
    """Its parameters, as ours."""
    state = {name: t.detach() for name, t in theirs.named_parameters()}
    weights = (
        state["in_proj_weight"].chunk(3)
        if "in_proj_weight" in state
        else [state[f"{name}_proj_weight"] for name in "qkv"]
    )
    biases = state["in_proj_bias"].chunk(3)
    params = {name: {"weight": w, "bias": b} for name, w, b in zip("qkv", weights, biases, strict=True)}
    return params | {"out": {"weight": state["out_proj.weight"], "bias": state["out_proj.bias"]}}


@pytest.mark.parametrize(("kdim", "vdim"), [(None, None), (6, 10)])
def test_equals_torchs_own(kdim: int | None, vdim: int | None) -> None:
    theirs = torch.nn.MultiheadAttention(8, 4, kdim=kdim, vdim=vdim, batch_first=True, dtype=torch.float64)
    torch.nn.init.normal_(theirs.in_proj_bias)
    torch.nn.init.normal_(theirs.out_proj.bias)
    x, k, v = (torch.randn(2, n, e or 8, dtype=torch.float64) for n, e in ((5, 8), (7, kdim), (7, vdim)))
    want = theirs(x, k, v, need_weights=False)[0]
    agree(xfn.heads(copied(theirs), x, k, v, heads=4), want)


def test_a_causal_mask_equals_torchs_own() -> None:
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    hidden = torch.ones(5, 5).triu(1).bool()
    want = theirs(x, x, x, attn_mask=hidden, need_weights=False)[0]
    agree(xfn.heads(copied(theirs), x, bias=bias.causal(), heads=2), want)


def test_any_attention_serves() -> None:
    params, x = xfn.init_heads(random.key(0), 8, 2, dtype=torch.float64), torch.randn(2, 5, 8, dtype=torch.float64)

    def plain(q: Tensor, k: Tensor, v: Tensor, bias: Any, *, key: Tensor | None) -> Tensor:
        weights = torch.einsum("...mhk,...nhk->...hmn", q, k).softmax(-1)
        return torch.einsum("...hmn,...nhv->...mhv", weights, v)

    agree(
        xfn.heads(params, x, heads=2, attend=plain),
        xfn.heads(params, x, heads=2, attend=partial(xfn.attention, scale=1.0)),
    )


def test_dropout_inside_and_behind_draws_what_examples_draw() -> None:
    params, x = xfn.init_heads(random.key(0), 8, 2, dtype=torch.float64), torch.randn(3, 5, 8, dtype=torch.float64)
    run = lambda x, key: xfn.heads(
        params, x, None, None, None, 0.3, heads=2, attend=partial(xfn.attention, p=0.2), key=key
    )
    keys = random.split(random.key(1), 3)
    loop = torch.stack([run(v, key) for v, key in zip(x, keys, strict=True)])
    agree(run(x, random.key(1)), loop, 1e-13)
    agree(func.vmap(run)(x, keys), loop, 1e-13)


@pytest.mark.parametrize("name", ["heads", "mlp"])
def test_per_example_gradients_are_a_loops(name: str) -> None:
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    params: Any
    if name == "heads":
        params = xfn.init_heads(random.key(0), 8, 2, dtype=torch.float64)
        loss = lambda params, x: xfn.heads(params, x, heads=2).sin().sum()
    else:
        params = xfn.init_mlp(random.key(0), 8, dtype=torch.float64)
        loss = lambda params, x: xfn.mlp(params, x).sin().sum()
    found = func.vmap(func.grad(loss), (None, 0))(params, x)
    loop = [func.grad(loss)(params, v) for v in x]
    agree(found, torch.utils._pytree.tree_map(lambda *each: torch.stack(each), *loop))


def test_shared_projections_have_one_weight_and_three_biases() -> None:
    params = xfn.init_heads(random.key(0), 8, 2, shared=True)
    assert [sorted(params[name]) for name in "qkv"] == [["bias", "weight"], ["bias"], ["bias"]]  # type: ignore[literal-required]
    slope = func.grad(lambda params: xfn.heads(params, torch.randn(5, 8), heads=2).sum())(params)
    assert slope["q"]["weight"].abs().sum() > 0
    with pytest.raises(ValueError, match="q, k and v share no weight"):
        xfn.init_heads(random.key(0), 8, 2, context=4, shared=True)


def test_weights_are_drawn_as_glorot_and_bengio_say() -> None:
    params = xfn.init_heads(random.key(0), 256, 4)
    for name in "qkv":
        weight = params[name]["weight"]  # type: ignore[literal-required]
        assert abs(weight.std() - (2 / 512) ** 0.5) < 1e-3


def test_what_is_wrong_is_said() -> None:
    params, x = xfn.init_heads(random.key(0), 8, 4), torch.randn(5, 8)
    with pytest.raises(ShapeError, match=r"q.weight gives 8 features, which 3 heads cannot share evenly"):
        xfn.heads(params, x, heads=3)
    with pytest.raises(ValueError, match=r"dim=8 does not divide into heads=3: give key_dim and value_dim"):
        xfn.init_heads(random.key(0), 8, 3)
    wrong: Any = {"q": params["q"], "k": params["k"], "v": params["v"], "output": params["out"]}
    with pytest.raises(ValueError, match=r"but these lack out.weight and have output.weight, output.bias besides"):
        xfn.heads(wrong, x, heads=4)
