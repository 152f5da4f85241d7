"""One sublayer: an attention or a feed-forward within its residual. A part is asked for what its signature takes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import random
from .._core.dims import Dims
from .._core.errors import ShapeError
from .._core.terms import Dense, Interval, Term
from ..bias import Bias, causal
from ..ops.dropout import dropout
from ..ops.heads import heads, init_heads
from ..parts import draws, honours
from .weights import drawn

Losses = dict[str, Tensor]
PROJECTIONS = ("q", "k", "v", "out")


class Given(NamedTuple):
    """What all layers of a stage look at."""

    bias: Bias
    grid: tuple[int, int] | None
    position: Mapping[str, Any]
    context: Tensor | None = None
    context_bias: Bias = Bias(())


class Sublayer:
    """A part within a residual: parameters ``{name: …, name_norm: …}``."""

    def __init__(self, name: str, part: Any, residual: Any, dims: Dims, alpha: float | None, gain: float) -> None:
        self.name, self.part, self.residual, self.dims, self.gain = name, part, residual, dims, gain
        self.takes, self.draws = honours(part), draws(part)
        self.called = type(part).__name__
        self.scaled = () if alpha is None else (alpha,)

    def init(self, key: Tensor, weights: str | None) -> dict[str, Any]:
        core, norm = random.fold_in(key, 0), random.fold_in(key, 1)
        made = {self.name: self.core(core, weights), f"{self.name}_norm": self.residual.init(norm, self.dims)}
        return {name: params for name, params in made.items() if params}

    def both(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a layer's parameters that are this sublayer's."""
        return {"f": params.get(self.name, {}), "norm": params.get(f"{self.name}_norm", {})}

    def core(self, key: Tensor, weights: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def run(self, params: Any, x: Tensor, given: Given, losses: Losses, key: Tensor | None) -> Tensor:
        raise NotImplementedError

    def apply(self, params: Any, x: Tensor, given: Given, losses: Losses, key: Tensor | None) -> Tensor:
        """The stream behind this sublayer of a layer with ``params``."""
        key = key if self.draws else None
        f = lambda params, x: self.run(params, x, given, losses, key)
        return self.residual.apply(self.both(params), x, f, *self.scaled)  # type: ignore[no-any-return]

    def branch(self, both: Any, x: Tensor, given: Given, *, key: Tensor | None = None) -> Tensor:
        """What it adds to the other stream of a reversible stack; of its own parameters."""
        key = key if self.draws else None
        losses: Losses = {}
        f = lambda params, x: self.run(params, x, given, losses, key)
        y = self.residual.branch(both, x, f)
        if losses:
            raise TypeError(f"{self.called}.apply returns losses, so its layers cannot be reversible")
        return y  # type: ignore[no-any-return]

    def seen(self, x: Tensor, grid: tuple[int, int] | None) -> tuple[int, int]:
        """The grid on which x lies: that of its patches, or a square."""
        side = round(x.shape[-2] ** 0.5)
        height, width = (side, side) if grid is None else grid
        if height * width != x.shape[-2]:
            raise ShapeError(f"{self.called}.apply sees a grid, but M={x.shape[-2]} tokens do not lie on a square")
        return height, width


class Attention(Sublayer):
    """Heads that attend, or a part that takes x as it is; to its own sequence, or to another of width ``context``."""

    def __init__(
        self, name: str, part: Any, residual: Any, dims: Dims, alpha: float | None, gain: float, *,
        causal: bool, p: float, position: Any = None, context: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name, part, residual, dims, alpha, gain)
        self.causal, self.p, self.context = causal, p, context
        self.draws = self.draws or p > 0
        self.within = {"q", "k", "v"} <= self.takes
        self.position = position if position is not None and "q" in honours(position) else None

    def core(self, key: Tensor, weights: str | None) -> dict[str, Any]:
        own = self.part.init(random.fold_in(key, 0), self.dims)
        if not self.within:
            return dict(own) if "grid" in self.takes else self.maps(key, own, weights)
        dims, at = self.dims, random.fold_in(key, 1)
        params: dict[str, Any] = dict(init_heads(at, dims.model, dims.heads, dims.groups, context=self.context))
        params = self.maps(key, params, weights)
        return {**params, "attend": own} if own else params

    def maps(self, key: Tensor, params: Mapping[str, Any], weights: str | None) -> dict[str, Any]:
        """Parameters drawn as the weights of attention are: values and their output have the gain."""
        found: dict[str, Any] = {}
        for i, name in enumerate(params):
            gain = self.gain if name in ("v", "out") else 1.0
            found |= drawn(weights, random.fold_in(key, 2 + i), {name: params[name]}, "attention", gain)
        return found

    def run(self, params: Any, x: Tensor, given: Given, losses: Losses, key: Tensor | None) -> Tensor:
        crossing = self.context is not None
        context, bias = (given.context, given.context_bias) if crossing else (x, given.bias)
        asked = self.asked(x, context, bias, None if crossing else given.grid)  # type: ignore[arg-type]
        part, p = self.part, 0.0 if key is None else self.p
        if not self.within:
            asked |= {"context": given.context} if "context" in self.takes else {}
            if "key" in self.takes:
                asked["key"] = None if key is None else random.fold_in(key, 0)
            y = part.apply(params, x, **asked)
            return dropout(y, p, key=random.fold_in(key, 1)) if p and key is not None else y
        own = params.get("attend", {})

        def attend(q: Tensor, k: Tensor, v: Tensor, _: Any, *, key: Tensor | None) -> Tensor:
            return part.apply(own, q, k, v, **asked, **({"key": key} if "key" in self.takes else {}))  # type: ignore[no-any-return]

        position = self.position
        turn = None if position is None else lambda q, k: position.apply(given.position, q, k)
        projections: Any = {name: params[name] for name in PROJECTIONS}
        return heads(projections, x, context, p=p, heads=self.dims.heads, attend=attend, turn=turn, key=key)

    def asked(self, x: Tensor, context: Tensor, bias: Bias, grid: tuple[int, int] | None) -> dict[str, Any]:
        """What of a call the part honours, by name; what it does not, is refused."""
        asked: dict[str, Any] = {}
        if "bias" in self.takes:
            asked["bias"] = bias + causal() if self.causal else bias
        elif bias.terms and "kept" not in self.takes:
            raise TypeError(f"{self.called}.apply takes no bias, so it cannot honour one")
        if "kept" in self.takes:
            asked["kept"] = kept(bias, context, self.called) if "bias" not in self.takes and bias.terms else None
        if "causal" in self.takes:
            asked["causal"] = self.causal
        if "grid" in self.takes:
            asked["grid"] = self.seen(x, grid)
        return asked


class FeedForward(Sublayer):
    """A feed-forward part; what it returns besides y is a loss."""

    def __init__(
        self, name: str, part: Any, residual: Any, dims: Dims, alpha: float | None, gain: float, *, causal: bool
    ) -> None:
        super().__init__(name, part, residual, dims, alpha, gain)
        self.causal = causal

    def core(self, key: Tensor, weights: str | None) -> dict[str, Any]:
        params = dict(self.part.init(random.fold_in(key, 0), self.dims))
        if "grid" in self.takes:
            return params
        return drawn(weights, random.fold_in(key, 1), params, "feedforward", self.gain)

    def run(self, params: Any, x: Tensor, given: Given, losses: Losses, key: Tensor | None) -> Tensor:
        asked: dict[str, Any] = {"grid": self.seen(x, given.grid)} if "grid" in self.takes else {}
        asked |= {"causal": self.causal} if "causal" in self.takes else {}
        asked |= {"key": key} if "key" in self.takes else {}
        y = self.part.apply(params, x, **asked)
        if isinstance(y, Tensor):
            return y
        y, found = y
        gather(losses, found)
        return y  # type: ignore[no-any-return]


def gather(losses: Losses, found: Mapping[str, Tensor]) -> None:
    """Add up losses by their names: of a layer, the mean over examples, and nothing where there are none."""
    for name, loss in found.items():
        mean = loss.mean() if loss.numel() else loss.sum()
        losses[name] = losses[name] + mean if name in losses else mean


def same_for_all(bias: Bias) -> Bias:
    """Those terms of a bias that every query has alike, as key padding is."""
    return Bias(tuple(term for term in bias.terms if _same(term)))


def _same(term: Term) -> bool:
    if isinstance(term, Interval):
        return term.lo.count == term.hi.count == 1
    return isinstance(term, Dense) and (term.tensor.dim() < 2 or term.tensor.shape[-2] == 1)


def kept(bias: Bias, context: Tensor, called: str) -> Tensor:
    """Key padding ``[..., N]``, of a bias that is nothing else."""
    N = context.shape[-2]
    found = bias.resolve(1, N, context.device) if len(same_for_all(bias).terms) == len(bias.terms) else None
    if found is None or (found.dense is not None and found.dense.dtype != torch.bool):
        raise TypeError(
            f"{called}.apply takes no bias, so it can honour key padding alone: pass booleans [..., 1, 1, N]"
        )
    visible = found.visible(1, N, context.device)
    if visible.shape[-3] != 1:
        raise TypeError(f"{called}.apply takes no bias, so it cannot honour one for each head")
    return visible[..., 0, 0, :]
