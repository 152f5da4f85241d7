"""Six programs written for xFormers: with nothing but their imports changed, and then in xfn's own words.

    python -m examples.migrate_xformers [--quick] [--seed N]

`before` is the old program, which says ``xfn.compat`` where it said ``xformers``; `after` is what one would write now.
The promise is that no result of the second is further than 1e-5 of the largest from that of the first, and none of the
gradients with regard to what came in.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, func

import xfn
import xfn.compat.ops as xops
from xfn import bias, layout, random
from xfn.compat import factory
from xfn.compat.components import MultiHeadDispatch, build_attention
from xfn.compat.components.attention import BlockSparseAttention, ScaledDotProduct
from xfn.compat.ops import fmha

from ._shared import Promise, options

PROMISE = Promise("distance of after from before", 1e-5, least=False, form=".0e")

Program = Callable[[Tensor], Any]
B, M, E, H, BLOCK = 2, 128, 64, 4, 32


def memory_efficient() -> tuple[Program, Program]:
    """A causal attention over [B, M, H, K]."""

    def before(x: Tensor) -> Any:
        q = k = v = x.unflatten(-1, (H, -1))
        return xops.memory_efficient_attention(q, k, v, attn_bias=xops.LowerTriangularMask())

    def after(x: Tensor) -> Any:
        q = k = v = x.unflatten(-1, (H, -1))
        return xfn.attention(q, k, v, bias.causal())

    return before, after


def ragged() -> tuple[Program, Program]:
    """Sequences of other lengths, one behind the other."""
    lengths = [M // 2, M // 4, M // 4]

    def before(x: Tensor) -> Any:
        q = k = v = x[:1].unflatten(-1, (H, -1))
        return xops.memory_efficient_attention(q, k, v, attn_bias=fmha.BlockDiagonalMask.from_seqlens(lengths))

    def after(x: Tensor) -> Any:
        q = k = v = x[:1].unflatten(-1, (H, -1))
        return xfn.attention(q, k, v, bias.segments(lengths))

    return before, after


def dispatched() -> tuple[Program, Program]:
    """Heads around an attention that is chosen by a dict; their weights go over by name."""
    attention = build_attention({"name": "local", "dropout": 0.0, "window_size": 7})
    heads = MultiHeadDispatch(dim_model=E, num_heads=H, residual_dropout=0.0, attention=attention)
    params: Any = {
        name: dict(linear.named_parameters())
        for name, linear in zip("qkv", heads.in_proj_container.children(), strict=False)
    } | {"out": dict(heads.proj.named_parameters())}

    def before(x: Tensor) -> Any:
        return heads(query=x, key=x, value=x)

    def after(x: Tensor) -> Any:
        return xfn.heads(params, x, bias=bias.local(3, 3), heads=H)

    return before, after


def block_sparse() -> tuple[Program, Program]:
    """Tiles of a causal layout, trimmed by a mask."""
    attention = BlockSparseAttention(layout=torch.tril(torch.ones(H, M // BLOCK, M // BLOCK)), block_size=BLOCK)
    mask = torch.tril(torch.ones(M, M))

    def before(x: Tensor) -> Any:
        q = x.unflatten(-1, (H, -1)).transpose(1, 2)
        return attention(q, q, q, att_mask=mask).transpose(1, 2)

    def after(x: Tensor) -> Any:
        q = x.unflatten(-1, (H, -1))
        return xfn.blocksparse_attention(layout.causal(M, block=BLOCK), q, q, q, bias.causal())

    return before, after


def sparse() -> tuple[Program, Program]:
    """A mask that keeps a twentieth of all pairs, and oneself."""
    mask = random.bernoulli(random.key(2), 0.05, (M, M)) | torch.eye(M).bool()
    attention = ScaledDotProduct()

    def before(x: Tensor) -> Any:
        return attention(x, x, x, att_mask=mask)

    def after(x: Tensor) -> Any:
        return xfn.attention(x[:, :, None], x[:, :, None], x[:, :, None], mask).squeeze(-2)

    return before, after


def model() -> tuple[Program, Program]:
    """A whole encoder from a list of dicts; its checkpoint becomes a tree, and the model a function of it."""
    attention = {"name": "scaled_dot_product", "dropout": 0.0, "seq_len": M}
    stack = {
        "block_type": "encoder",
        "num_layers": 2,
        "dim_model": E,
        "residual_norm_style": "pre",
        "multi_head_config": {"num_heads": H, "residual_dropout": 0.0, "attention": attention},
        "feedforward_config": {"name": "MLP", "dropout": 0.0, "activation": "gelu", "hidden_layer_multiplier": 4},
    }
    config = factory.xFormerConfig([stack])
    net = factory.xFormer.from_config(config).eval()
    params = factory.params_from_state_dict(config, net.state_dict())
    apply = factory.build(config).apply

    def before(x: Tensor) -> Any:
        return net(src=x)

    def after(x: Tensor) -> Any:
        return apply(params, x)[0]

    return before, after


PROGRAMS = (memory_efficient, ragged, dispatched, block_sparse, sparse, model)


def main(arguments: Sequence[str] | None = None) -> float:
    """Runs each before and after; how far they are apart at most."""
    chosen = options(__doc__, arguments, picture=False)
    torch.manual_seed(chosen.seed)
    x = random.normal(random.key(chosen.seed), (B, M, E))
    gaps: list[float] = []
    for program in PROGRAMS:
        both = program()
        results = [f(x) for f in both], [func.grad(lambda x, f=f: f(x).square().sum())(x) for f in both]
        gaps += [((after - before).abs().max() / before.abs().max()).item() for before, after in results]
        print(f"{(program.__doc__ or '').split(';')[0].rstrip('.'):<60} {max(gaps[-2:]):.0e} apart")
    return PROMISE.show(max(gaps), chosen.quick)


if __name__ == "__main__":
    main()
