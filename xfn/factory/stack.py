"""Stages of layers, one behind the other, between what comes in and what goes out."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import random
from .._core.dims import Dims
from ..bias import Bias
from ..ops.embedding import embedding, init_embedding
from ..ops.linear import init_linear, linear
from ..ops.patch import init_patch, patch
from ..ops.residual import DeepNorm
from ..ops.reversible import reversible
from ..ops.simplicial import simplicial
from ..parts import draws, honours
from ..parts.position.none import None_
from ..parts.position.vocab import Vocab
from .config import Decoder, Encoder, Stage
from .sublayer import Attention, FeedForward, Given, Losses, Sublayer, same_for_all
from .weights import drawn

Grid = tuple[int, int] | None
Watch = Callable[[str], AbstractContextManager[Any]]
"""What looks on while the step of that name runs."""


def unwatched(name: str) -> AbstractContextManager[Any]:
    """Nobody looks on."""
    return nullcontext()


def within(watch: Watch, prefix: str) -> Watch:
    """Steps of a part, by their names within the whole."""
    return (lambda name: watch(f"{prefix}{name}")) if prefix else watch


def children(key: Tensor | None, n: int) -> Sequence[Tensor | None]:
    """fold_in(key, i) for i < n, at once; nothing without a key."""
    if key is None:
        return [None] * n
    return random.fold_in(key.unsqueeze(-2), torch.arange(n, device=key.device)).unbind(-2)


@lru_cache(maxsize=256)
def drawn_from_nothing(part: Any, dims: Dims) -> None:
    """Raise what a part's init raises, on a key of no numbers."""
    with suppress(RuntimeError):  # of a part that looks at the numbers of its key
        part.init(random.key(0, device="meta"), dims)


class Layers:
    """A stage: what makes its input of the one before, and its layers."""

    def __init__(self, config: Stage, before: int | None, memory: int | None, deep: DeepNorm | None) -> None:
        self.config, self.dims, self.before = config, config.dims, before
        self.embeds = before is None and config.dims.vocab is not None
        usual = Vocab() if self.embeds else None_()
        self.position: Any = usual if config.position is None else config.position
        self.takes = honours(self.position)
        self.patch = config.patch if isinstance(config, Encoder) else None
        alpha, gain = deep if deep and "alpha" in honours(config.residual) else (None, 1.0)
        rest: tuple[Any, ...] = (config.residual, self.dims, alpha, gain)
        own = Attention("attention", config.attention, *rest, causal=config.causal, p=config.p, position=self.position)
        feedforward = FeedForward("feedforward", config.feedforward, *rest, causal=config.causal)
        self.sublayers: list[Sublayer] = [own, feedforward]
        if isinstance(config, Decoder) and memory is not None:
            cross = Attention("cross", config.cross, *rest, causal=False, p=config.p, context=memory)
            self.sublayers.insert(1, cross)
        self.draws = draws(self.position) or any(sublayer.draws for sublayer in self.sublayers)

    def init(self, key: Tensor) -> dict[str, Any]:
        keys, params, dims = random.split(key, 4), dict[str, Any](), self.dims
        if self.patch:
            channels = self.before or self.patch.channels
            made = init_patch(keys[0], channels, dims.model, self.patch.kernel)  # type: ignore[arg-type]
            params["patch"] = drawn(self.config.weights, random.fold_in(keys[0], 2), made, "patch")
        elif self.before not in (None, dims.model):
            params["projector"] = init_linear(keys[0], self.before, dims.model)
        if self.embeds and "tokens" not in self.takes:
            params["embedding"] = init_embedding(keys[1], dims.needs("vocab", "an embedding"), dims.model)
        if position := self.position.init(keys[2], dims):
            params["position"] = dict(position)
        params["layers"] = {
            str(i): {name: tree for j, sublayer in enumerate(self.sublayers) for name, tree in
                     sublayer.init(random.fold_in(layer, j), self.config.weights).items()}
            for i, layer in enumerate(random.split(keys[3], self.config.layers))
        }  # fmt: skip
        return params

    def words(self, params: Mapping[str, Any]) -> Tensor:
        """The table that embeds tokens, ``[W, E]``."""
        return params["position"]["word"] if "tokens" in self.takes else params["embedding"]["weight"]  # type: ignore[no-any-return]

    def without_words(self, params: dict[str, Any]) -> dict[str, Any]:
        """Parameters, less the table that embeds tokens."""
        if "tokens" in self.takes:
            return {**params, "position": {n: t for n, t in params["position"].items() if n != "word"}}
        return {name: tree for name, tree in params.items() if name != "embedding"}

    def batch(self, x: Tensor) -> tuple[int, ...]:
        """The shape of a batch of what comes in."""
        return tuple(x.shape[: -1 if self.embeds else -3 if self.patch else -2])

    def enter(
        self, params: Mapping[str, Any], x: Tensor, grid: Grid, words: Tensor | None, key: Tensor | None
    ) -> tuple[Tensor, Grid]:
        """What the first layer sees, and the grid on which it lies."""
        if self.patch:
            square = (round(x.shape[-2] ** 0.5),) * 2 if self.before and grid is None else grid
            height, width = square or x.shape[-2:]
            x = patch(params["patch"], x, self.patch.stride, self.patch.padding, square)
            grid = self.patch.grid(height, width)
        elif "projector" in params:
            x = linear(params["projector"], x)
        own = params.get("position", {})
        if "tokens" in self.takes:
            own = own if words is None else {**own, "word": words}
            options = {"key": key} if "key" in self.takes else {}
            return self.position.apply(own, x, **options), grid
        if self.embeds:
            x = embedding(params["embedding"] if words is None else {"weight": words}, x)
        if "x" in self.takes:
            options = {"key": key} if "key" in self.takes else {}
            x = self.position.apply(own, x, **options)
        return x, grid

    def run(
        self, params: Mapping[str, Any], x: Tensor, given: Given, losses: Losses, key: Tensor | None, watch: Watch
    ) -> Tensor:
        """The layers."""
        layers = [params["layers"].get(str(i)) for i in range(self.config.layers)]
        if None in layers or len(layers) < len(params["layers"]):
            raise ValueError(f"the parameters are of {len(params['layers'])} layers, but the config has {len(layers)}")
        if isinstance(self.config, Encoder) and self.config.reversible:
            f, g = self.sublayers
            pairs = [(f.both(layer), g.both(layer)) for layer in layers]
            with watch("layers"):
                y1, y2 = reversible(f.branch, g.branch)(pairs, x, x, given, key=key)
                return (y1 + y2) / 2
        keys = children(key if self.draws else None, len(self.sublayers) * len(layers))
        for i, layer in enumerate(layers):
            with watch(f"layers.{i}"):
                for j, sublayer in enumerate(self.sublayers):
                    x = sublayer.apply(layer, x, given, losses, keys[len(self.sublayers) * i + j])
        return x


class Stack:
    """An encoder or a decoder: stages, and what comes behind the last layer.

    ``predicts``: whether logits come out where there are tokens; ``tied``: whether they are products with the table
    that embeds tokens; ``lent``: whether that table is another stack's.
    """

    def __init__(
        self, stages: Sequence[Stage], memory: int | None = None, deep: DeepNorm | None = None, *,
        predicts: bool = True, tied: bool = False, lent: bool = False,
    ) -> None:  # fmt: skip
        widths = [None, *(stage.dims.model for stage in stages)]
        self.stages = [Layers(stage, before, memory, deep) for stage, before in zip(stages, widths, strict=False)]
        self.last = stages[-1]
        self.width = self.last.dims.model
        self.predicts = predicts and self.last.dims.vocab is not None
        self.tied, self.lent = tied or any(stage.tie_embeddings for stage in stages), lent
        self.normed = hasattr(self.last.residual, "last")
        self.draws = any(stage.draws for stage in self.stages)

    def init(self, key: Tensor) -> dict[str, Any]:
        keys = random.split(key, len(self.stages) + 2)
        stages = [stage.init(keys[2 + i]) for i, stage in enumerate(self.stages)]
        if self.lent:
            stages[0] = self.stages[0].without_words(stages[0])
        params: dict[str, Any] = (
            stages[0] if len(stages) == 1 else {"stages": {str(i): tree for i, tree in enumerate(stages)}}
        )
        if self.normed and (norm := self.last.residual.init(keys[0], self.last.dims)):
            params["norm"] = norm
        if self.predicts and not self.tied:
            params["logits"] = init_embedding(keys[1], self.last.dims.needs("vocab", "a prediction"), self.width)
        return params

    def check(self) -> None:
        """Raise what a part's init raises."""
        for stage in self.stages:
            parts = [stage.position, *(s.part for s in stage.sublayers), *(s.residual for s in stage.sublayers)]
            for part in parts:
                try:
                    drawn_from_nothing(part, stage.dims)
                except TypeError as error:  # of a part that has no hash, or of its init
                    if "unhashable" not in str(error):
                        raise
                    drawn_from_nothing.__wrapped__(part, stage.dims)

    def each(self, params: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The parameters of every stage."""
        return [params["stages"][str(i)] for i in range(len(self.stages))] if len(self.stages) > 1 else [params]

    def words(self, params: Mapping[str, Any]) -> Tensor:
        """The table that embeds tokens."""
        return self.stages[0].words(self.each(params)[0])

    def run(
        self, params: Mapping[str, Any], x: Tensor, bias: Bias, losses: Losses, key: Tensor | None,
        memory: tuple[Tensor, Bias] | None = None, words: Tensor | None = None, watch: Watch = unwatched,
    ) -> Tensor:  # fmt: skip
        """What comes out; losses are added up."""
        key = None if key is None or not self.draws else random.spread(key, self.stages[0].batch(x))
        grid: Grid = None
        keys = children(key, 2 * len(self.stages))
        for i, (stage, own) in enumerate(zip(self.stages, self.each(params), strict=True)):
            at, inner = keys[2 * i], keys[2 * i + 1]
            prefix = f"stages.{i}." if len(self.stages) > 1 else ""
            with watch(f"{prefix}input"):
                x, grid = stage.enter(own, x, grid, words if i == 0 else None, at)
            turns = own.get("position", {}) if "q" in stage.takes else {}
            x = stage.run(own, x, Given(bias, grid, turns, *(memory or ())), losses, inner, within(watch, prefix))
        with watch("output"):
            return self.leave(params, x, words)

    def leave(self, params: Mapping[str, Any], x: Tensor, words: Tensor | None) -> Tensor:
        """What comes behind the last layer."""
        if self.normed:
            x = self.last.residual.last(params.get("norm", {}), x)
        if isinstance(self.last, Encoder) and self.last.simplicial:
            x = simplicial(x, self.last.simplicial.L, self.last.simplicial.temperature)
        if not self.predicts:
            return x
        if not self.tied:
            return linear(params["logits"], x)
        return linear({"weight": self.words(params) if words is None else words}, x)

    def apply(
        self, params: Mapping[str, Any], x: Tensor, *, bias: Bias | Tensor | None = None, key: Tensor | None = None
    ) -> tuple[Tensor, Losses]:
        """A model's apply."""
        losses: Losses = {}
        return self.run(params, x, Bias.of(bias), losses, key), losses


class Both:
    """An encoder, and a decoder that looks at what it made."""

    def __init__(self, encoder: Stack, decoder: Stack) -> None:
        self.encoder, self.decoder = encoder, decoder

    def init(self, key: Tensor) -> dict[str, Any]:
        first, second = random.split(key)
        return {"encoder": self.encoder.init(first), "decoder": self.decoder.init(second)}

    def apply(
        self, params: Mapping[str, Any], source: Tensor, target: Tensor, *, source_bias: Bias | Tensor | None = None,
        target_bias: Bias | Tensor | None = None, key: Tensor | None = None,
    ) -> tuple[Tensor, Losses]:  # fmt: skip
        """A model's apply. What the source's bias says of all queries alike, as padding does, the decoder sees too."""
        losses: Losses = {}
        return self.run(params, source, target, Bias.of(source_bias), Bias.of(target_bias), losses, key), losses

    def run(
        self, params: Mapping[str, Any], source: Tensor, target: Tensor, source_bias: Bias, target_bias: Bias,
        losses: Losses, key: Tensor | None, watch: Watch = unwatched,
    ) -> Tensor:  # fmt: skip
        """What comes out; losses are added up."""
        batch = self.encoder.stages[0].batch(source)
        if key is not None and batch == self.decoder.stages[0].batch(target):  # one example, one key, in both
            key = random.spread(key, batch)
        first, second = children(key, 2)
        memory = self.encoder.run(
            params["encoder"], source, source_bias, losses, first, watch=within(watch, "encoder.")
        )
        words = self.encoder.words(params["encoder"]) if self.decoder.lent else None
        return self.decoder.run(
            params["decoder"], target, target_bias, losses, second, (memory, same_for_all(source_bias)), words,
            within(watch, "decoder."),
        )  # fmt: skip
