"""Pairs of init and apply of functions that are no models: partial ones, which can be copied and pickled."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from .. import random
from .._core.dims import Dims
from ..bias import Bias
from ..factory.build import Model
from ..factory.refuse import refuse_attention, refuse_context
from ..factory.sublayer import Attention, Given
from ..ops.reversible import reversible
from ..parts import honours


def bare(f: Callable[..., Any], **options: Any) -> Model:
    """A function without parameters."""
    return Model(_nothing, partial(_bare, partial(f, **options)))


def bare_dropping(f: Callable[..., Any], p: float, **options: Any) -> Model:
    """A function without parameters that drops with probability p, in training."""
    return Model(_nothing, partial(_bare_dropping, partial(f, **options), p))


def dropping(init: Callable[..., Any], f: Callable[..., Any], p: float, **options: Any) -> Model:
    """A function that drops with probability p, in training."""
    return Model(init, partial(_dropping, partial(f, **options), p))


class Heads:
    """An attention with its projections, which :func:`xfn.nn.MultiHead` holds."""

    def __init__(self, dims: Dims, attention: Any, causal: bool, p: float, position: Any, context: int | None) -> None:
        refuse_attention(attention, causal, position)
        if position is not None and "q" not in honours(position):
            raise TypeError(f"{type(position).__name__}.apply turns no q and k, so it has no place within heads")
        if context is not None:
            refuse_context(attention, dims.model, context)
        self.inner = Attention(
            "attention", attention, None, dims, None, 1.0, causal=causal, p=p, position=position, context=context
        )

    def init(self, key: Tensor) -> dict[str, Any]:
        return self.inner.core(key, None)

    def apply(
        self, params: Any, x: Tensor, context: Tensor | None = None, *, bias: Bias | Tensor | None = None,
        key: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        if (context is None) != (self.inner.context is None):
            wanted = "no context: write MultiHead(…, context=width)" if context is not None else "a context: pass one"
            raise TypeError(f"MultiHead was made for {wanted}")
        own = Bias.of(bias)
        return self.inner.run(params, x, Given(own, None, {}, context, own), {}, key)


class Streams:
    """Layers of pairs of functions, as a reversible stack."""

    def __init__(self, f: Any, g: Any, depth: int) -> None:
        self.pairs, self.depth = tuple(getattr(h, "model", h) for h in (f, g)), depth
        if wrong := [pair for pair in self.pairs if not isinstance(pair, tuple)]:
            raise TypeError(f"a reversible stack is of pairs (init, apply) and modules of xfn.nn, but got {wrong[0]!r}")

    def init(self, key: Tensor) -> dict[str, Any]:
        keys = random.split(key, (self.depth, 2))
        return {
            str(i): {name: pair[0](keys[i, j]) for j, (name, pair) in enumerate(zip("fg", self.pairs, strict=True))}
            for i in range(self.depth)
        }

    def apply(self, params: Any, x1: Tensor, x2: Tensor, *, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        layers = [(params[str(i)]["f"], params[str(i)]["g"]) for i in range(self.depth)]
        f, g = (pair[1] for pair in self.pairs)
        return reversible(f, g)(layers, x1, x2, key=key)


def _nothing(key: Tensor) -> dict[str, Tensor]:
    return {}


def _bare(f: Callable[..., Any], params: Any, *args: Any, **options: Any) -> Any:
    return f(*args, **options)


def _dropping(
    f: Callable[..., Any], p: float, params: Any, *args: Any, key: Tensor | None = None, **options: Any
) -> Any:
    return f(params, *args, p=0.0 if key is None else p, key=key, **options)


def _bare_dropping(
    f: Callable[..., Any], p: float, params: Any, *args: Any, key: Tensor | None = None, **options: Any
) -> Any:
    return f(*args, p=0.0 if key is None else p, key=key, **options)
