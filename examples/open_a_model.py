"""A model of Hugging Face's transformers, opened to every transform by one line.

    python -m examples.open_a_model [--quick] [--seed N]

GPT-2 with random weights attends with xfn after ``register()``. Its tangents, Hessian-vector products and per-example
gradients, which the model's own fused attention does not have, or takes in a loop, are compared with those of its
attention written out. The promise is that no number is further than 1e-5 of the largest from its own.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, func
from torch.utils._pytree import tree_leaves

from xfn import random
from xfn.compat.transformers import register

from ._shared import Params, Promise, borrowed, options

PROMISE = Promise("distance from the attention written out", 1e-5, least=False, form=".0e")


def model(name: str, layers: int) -> Any:
    """GPT-2, small and random, with the attention of that name."""
    transformers = borrowed("transformers", "transformers")
    transformers.logging.set_verbosity_error()
    config = transformers.GPT2Config(vocab_size=128, n_positions=128, n_embd=64, n_layer=layers, n_head=4)
    torch.manual_seed(0)
    config._attn_implementation = name
    return transformers.GPT2LMHeadModel(config).eval()


def transforms(net: Any, tokens: Tensor, direction: Params) -> dict[str, Callable[[], Any]]:
    """What is taken of the model's loss."""
    params = {name: p.detach() for name, p in net.named_parameters()}

    def loss(params: Params, tokens: Tensor) -> Tensor:
        logits = func.functional_call(net, params, (tokens,), {"use_cache": False}).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    whole = lambda params: loss(params, tokens)
    return {
        "gradient": lambda: func.grad(whole)(params),
        "per example": lambda: func.vmap(func.grad(loss), (None, 0))(params, tokens[:, None]),
        "tangent": lambda: func.jvp(whole, (params,), (direction,)),
        "Hessian-vector": lambda: func.jvp(func.grad(whole), (params,), (direction,))[1],
    }


def main(arguments: Sequence[str] | None = None) -> float:
    """Takes all of them with each attention; how far those of xfn are from those of formulas."""
    chosen = options(__doc__, arguments, picture=False)
    layers, length = (1, 16) if chosen.quick else (4, 96)
    borrowed("transformers", "transformers")
    register()
    tokens = random.randint(random.key(chosen.seed), (4, length), 0, 128)
    nets = {name: model(name, layers) for name in ("eager", "sdpa", "xfn")}
    params = dict(nets["xfn"].named_parameters())
    keys = random.split(random.key(chosen.seed + 1), len(params))
    direction = {name: random.normal(key, p.shape) for key, (name, p) in zip(keys, params.items(), strict=True)}

    gaps = []
    runs = {name: transforms(net, tokens, direction) for name, net in nets.items()}
    for how in runs["eager"]:
        wanted = torch.cat([leaf.flatten() for leaf in tree_leaves(runs["eager"][how]())])
        line = f"{how:<16}"
        for name in ("sdpa", "xfn"):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    found = torch.cat([leaf.flatten() for leaf in tree_leaves(runs[name][how]())])
                    gap = ((found - wanted).abs().max() / wanted.abs().max()).item()
                    loops = any("performance drop" in str(w.message) for w in caught)
                    line += f"{name}: {gap:.0e} apart{', by a loop' if loops else ''}    "
                    gaps += [gap] if name == "xfn" else []
                except (NotImplementedError, RuntimeError) as error:
                    if name == "xfn":
                        raise
                    line += f"{name}: raises {type(error).__name__}    "
        print(line.rstrip())
    return PROMISE.show(max(gaps), chosen.quick)


if __name__ == "__main__":
    main()
