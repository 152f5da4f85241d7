"""Thin modules: each holds the parameters of a function and returns what the function returns.

Names of parameters are paths of the function's tree. In training, what drops draws a key from torch's generator for
every call; ``module.params.tree()`` is what the function itself takes.
"""

from functools import partial
from typing import Any

from torch import Tensor

from .._core.dims import Dims
from ..factory.build import Model, build
from ..factory.config import Decoder as DecoderConfig
from ..factory.config import Encoder as EncoderConfig
from ..factory.config import Transformer as TransformerConfig
from ..ops.attention import attention
from ..ops.conv_mlp import conv_mlp, init_conv_mlp
from ..ops.dropout import dropout
from ..ops.embedding import embedding, init_embedding
from ..ops.layer_norm import EPS, init_layer_norm, layer_norm
from ..ops.learned import init_learned, learned
from ..ops.linear import init_linear, linear
from ..ops.mlp import init_mlp, mlp
from ..ops.moe import Route, init_moe, moe
from ..ops.patch import Pair, init_patch, patch
from ..ops.rms_norm import EPS as RMS_EPS
from ..ops.rms_norm import init_rms_norm, rms_norm
from ..ops.rotary import rotary
from ..ops.simplicial import simplicial
from ..ops.sine import sine
from ..ops.swiglu import init_swiglu, swiglu
from ..ops.vocab import init_vocab, vocab
from ..parts.attention.dot_product import DotProduct
from ._pairs import Heads, Streams, bare, bare_dropping, dropping
from .module import Module as Module

DOT_PRODUCT = DotProduct()


class Linear(Module):
    """:func:`xfn.linear`."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool = True, activation: str = "identity", *, key: Tensor | None = None
    ) -> None:
        super().__init__(
            Model(
                partial(init_linear, inputs=inputs, outputs=outputs, bias=bias), partial(linear, activation=activation)
            ),
            key,
        )


class LayerNorm(Module):
    """:func:`xfn.layer_norm`."""

    def __init__(self, dim: int, eps: float = EPS, *, key: Tensor | None = None) -> None:
        super().__init__(Model(partial(init_layer_norm, dim=dim), partial(layer_norm, eps=eps)), key)


class RMSNorm(Module):
    """:func:`xfn.rms_norm`."""

    def __init__(self, dim: int, eps: float = RMS_EPS, *, key: Tensor | None = None) -> None:
        super().__init__(Model(partial(init_rms_norm, dim=dim), partial(rms_norm, eps=eps)), key)


class MLP(Module):
    """:func:`xfn.mlp`."""

    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        activation: str = "gelu",
        p: float = 0.0,
        *,
        key: Tensor | None = None,
    ) -> None:
        super().__init__(dropping(partial(init_mlp, dim=dim, hidden=hidden), mlp, p, activation=activation), key)


class FusedMLP(MLP):
    """:func:`xfn.mlp`, in which all behind a product is one pass already."""


class SwiGLU(Module):
    """:func:`xfn.swiglu`."""

    def __init__(self, dim: int, hidden: int | None = None, p: float = 0.0, *, key: Tensor | None = None) -> None:
        super().__init__(dropping(partial(init_swiglu, dim=dim, hidden=hidden), swiglu, p), key)


class ConvMLP(Module):
    """:func:`xfn.conv_mlp`."""

    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        activation: str = "gelu",
        p: float = 0.0,
        *,
        key: Tensor | None = None,
    ) -> None:
        super().__init__(
            dropping(partial(init_conv_mlp, dim=dim, hidden=hidden), conv_mlp, p, activation=activation), key
        )


class MoE(Module):
    """:func:`xfn.moe`, which returns its losses too."""

    def __init__(
        self, dim: int, hidden: int | None = None, experts: int = 4, top: int = 2, activation: str = "gelu",
        p: float = 0.0, *, route: Route = "top", room: float = 1.0, key: Tensor | None = None,
    ) -> None:  # fmt: skip
        init = partial(init_moe, dim=dim, hidden=hidden, experts=experts, route=route)
        super().__init__(dropping(init, moe, p, top=top, activation=activation, route=route, room=room), key)


class Embedding(Module):
    """:func:`xfn.embedding`."""

    def __init__(self, words: int, dim: int, *, key: Tensor | None = None) -> None:
        super().__init__(Model(partial(init_embedding, words=words, dim=dim), embedding), key)


class Vocab(Module):
    """:func:`xfn.vocab`."""

    def __init__(self, words: int, length: int, dim: int, p: float = 0.0, *, key: Tensor | None = None) -> None:
        super().__init__(dropping(partial(init_vocab, words=words, length=length, dim=dim), vocab, p), key)


class Learned(Module):
    """:func:`xfn.learned`."""

    def __init__(self, length: int, dim: int, token: bool = False, *, key: Tensor | None = None) -> None:
        super().__init__(Model(partial(init_learned, length=length, dim=dim, token=token), learned), key)


class Patch(Module):
    """:func:`xfn.patch`."""

    def __init__(
        self, channels: int, dim: int, kernel: Pair, stride: Pair | None = None, padding: Pair = 0, *,
        key: Tensor | None = None,
    ) -> None:  # fmt: skip
        init = partial(init_patch, channels=channels, dim=dim, kernel=kernel)
        super().__init__(Model(init, partial(patch, stride=stride, padding=padding)), key)


class MultiHead(Module):
    """Any attention part, with the projections of its heads: ``net(x, bias=…)``, or ``net(x, context, bias=…)`` with
    ``context`` the width of another sequence."""

    def __init__(
        self, dim: int, heads: int = 1, attention: Any = DOT_PRODUCT, groups: int | None = None, p: float = 0.0, *,
        causal: bool = False, position: Any = None, length: int | None = None, context: int | None = None,
        key: Tensor | None = None,
    ) -> None:  # fmt: skip
        made = Heads(Dims(dim, heads, length, groups=groups), attention, causal, p, position, context)
        super().__init__(Model(made.init, made.apply), key)


class Attention(Module):
    """:func:`xfn.attention`: ``net(q, k, v, bias=None)``."""

    def __init__(self, p: float = 0.0, scale: float | None = None) -> None:
        super().__init__(bare_dropping(attention, p, scale=scale))


class Dropout(Module):
    """:func:`xfn.dropout`."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(bare_dropping(dropout, p))


class Rotary(Module):
    """:func:`xfn.rotary`: ``net(q, k)``."""

    def __init__(self, base: float = 10000.0, width: int | None = None, pairing: str = "halves") -> None:
        super().__init__(bare(rotary, base=base, width=width, pairing=pairing))


class Sine(Module):
    """:func:`xfn.sine`."""

    def __init__(self, base: float = 10000.0) -> None:
        super().__init__(bare(sine, base=base))


class Simplicial(Module):
    """:func:`xfn.simplicial`."""

    def __init__(self, L: int, temperature: float = 1.0) -> None:
        super().__init__(bare(simplicial, L=L, temperature=temperature))


class Reversible(Module):
    """``depth`` layers of :func:`xfn.reversible`, whose f and g are two models or modules: ``net(x1, x2)``."""

    def __init__(self, f: Any, g: Any, depth: int = 1, *, key: Tensor | None = None) -> None:
        made = Streams(f, g, depth)
        super().__init__(Model(made.init, made.apply), key)


class Encoder(Module):
    """What :func:`xfn.build` makes of an :class:`xfn.Encoder`."""

    def __init__(self, config: EncoderConfig, *, key: Tensor | None = None) -> None:
        super().__init__(build(config), key)


class Decoder(Module):
    """What :func:`xfn.build` makes of an :class:`xfn.Decoder`."""

    def __init__(self, config: DecoderConfig, *, key: Tensor | None = None) -> None:
        super().__init__(build(config), key)


class Transformer(Module):
    """What :func:`xfn.build` makes of an :class:`xfn.Transformer`."""

    def __init__(self, config: TransformerConfig, *, key: Tensor | None = None) -> None:
        super().__init__(build(config), key)
