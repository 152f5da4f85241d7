"""Configs of blocks and models under their old names. They keep what they are given, and change none of it."""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..._core.dims import Dims
from ...factory import Decoder, Encoder, Patch, Simplicial
from ...parts import honours, mixes
from ...parts.position.none import None_
from ...parts.position.vocab import Vocab
from ...parts.residual.deepnorm import Deepnorm
from ...parts.residual.post import Post
from ...parts.residual.pre import Pre
from ..components.residual import ResidualNormStyle as ResidualNormStyle
from .parts import FEEDFORWARD, POSITION, Projected, Within, attention, made
from .weight_init import xFormerWeightInit

Given = Mapping[str, Any]
HEADS = ("dim_model", "num_heads", "attention", "residual_dropout", "bias", "use_rotary_embeddings",
         "use_separate_proj_weight", "dim_key", "dim_value")  # fmt: skip
PATCH = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "pool_type")
NORMS = {"layernorm": "layer_norm", "rmsnorm": "rms_norm", "skip": "skip"}
STYLES = {ResidualNormStyle.Pre: Pre, ResidualNormStyle.Post: Post, ResidualNormStyle.DeepNorm: Deepnorm}


@dataclass
class LayerPosition:
    """Which end of a model a layer is at; nothing reads it, for a model knows its ends."""

    first: bool = True
    last: bool = True

    def is_first(self) -> bool:
        return self.first

    def is_last(self) -> bool:
        return self.last

    def mark_not_first(self) -> None:
        self.first = False

    def mark_not_last(self) -> None:
        self.last = False


class xFormerBlockConfig:
    """A layer, and how often it is repeated.

    ``stage`` is what it means: an :class:`xfn.Encoder` or an :class:`xfn.Decoder`.
    """

    block_type = ""
    heads: tuple[str, ...] = ()

    def __init__(
        self, dim_model: int, feedforward_config: Given, position_encoding_config: Given | None = None,
        residual_norm_style: str = "post", normalization: str = "layernorm", use_triton: bool = True,
        reversible: bool = False, num_layers: int = 1, layer_position: Any = None, block_type: Any = None,
        **more: Any,
    ) -> None:  # fmt: skip
        kind = getattr(block_type, "value", block_type)
        assert kind in (None, self.block_type), f"block_type={kind!r} is no {self.block_type}"
        self.dim_model, self.use_triton, self.reversible = dim_model, use_triton, reversible
        self.num_layers, self.layer_position = num_layers, layer_position or LayerPosition()
        self.feedforward_config = copy.deepcopy(feedforward_config)
        self.position_encoding_config = copy.deepcopy(position_encoding_config)
        self.residual_norm_style = ResidualNormStyle(residual_norm_style)
        self.normalization = str(getattr(normalization, "value", normalization))
        if self.normalization not in NORMS:
            raise ValueError(f"no normalization is called {self.normalization!r}; there are {list(NORMS)}")
        quiet = more.pop("_quiet", False)
        for name in self.heads:
            if name not in more:
                raise TypeError(f"{type(self).__name__} needs {name}")
            setattr(self, name, copy.deepcopy(more.pop(name)))
        self.ignored: list[str] = []
        self.stage = self._stage(more)
        self.ignored += list(more)
        if not quiet:
            tell(self.ignored)

    def _stage(self, more: dict[str, Any]) -> Encoder | Decoder:
        raise NotImplementedError

    def _fields(self, every: Sequence[Given]) -> dict[str, Any]:
        """What encoders and decoders have alike."""
        given = self.position_encoding_config or {}
        count, lengths = set(), set()
        for heads in every:
            count.add(heads.get("num_heads", 1))
            lengths.add(_attention(heads).get("seq_len"))
        if len(count) > 1:
            raise ValueError(f"the attentions of a block have one number of heads, but num_heads are {sorted(count)}")
        sizes = [n for n in lengths | {given.get("seq_len")} if n is not None]
        if len(sizes) > 1:
            raise ValueError(f"a block has sequences of one length, but seq_len are {sorted(sizes)}")
        drops = {heads.get("residual_dropout") or 0.0 for heads in every}
        if len(drops) > 1:
            raise ValueError(f"the attentions of a block drop alike, but residual_dropout are {sorted(drops)}")
        position, vocab = self._position(given)
        return {
            "dims": Dims(self.dim_model, count.pop(), next(iter(sizes), None), vocab),
            "layers": self.num_layers,
            "feedforward": made(FEEDFORWARD, "feedforward_config", self.feedforward_config, self.ignored),
            "position": position,
            "residual": STYLES[self.residual_norm_style](NORMS[self.normalization]),  # type: ignore[arg-type]
            "p": drops.pop(),
        }

    def _position(self, given: Given) -> tuple[Any, int | None]:
        if not given:
            return None_(), None
        known = {name: value for name, value in given.items() if name != "vocab_size"}
        part = made(POSITION, "position_encoding_config", known, self.ignored)
        vocab = given["vocab_size"] if isinstance(part, Vocab) else None
        width = given.get("dim_model") or self.dim_model
        return (part if width == self.dim_model else Projected(part, width)), vocab

    def _attend(self, name: str) -> tuple[Any, bool]:
        """The part that attends, and whether it is causal."""
        heads = getattr(self, name)
        self.ignored += [f"{name}.{field}" for field in heads if field not in HEADS]
        for field in ("dim_model", "dim_key", "dim_value"):
            if heads.get(field) not in (None, self.dim_model):
                raise ValueError(f"{name}.{field}={heads[field]} is not the block's dim_model={self.dim_model}")
        part, past = attention(_attention(heads), self.ignored)
        takes, turned = honours(part), bool(heads.get("use_rotary_embeddings"))
        if past and not takes & {"bias", "causal"}:
            self.ignored.append(f"{name}.attention.causal ({type(part).__name__} sees the future)")
            past = False
        if turned and "q" not in takes:
            self.ignored.append(f"{name}.use_rotary_embeddings ({type(part).__name__} has no q and k)")
            turned = False
        behind = str(self.feedforward_config.get("name"))
        if past and name != "multi_head_config_cross" and behind == "Conv2DFeedforward":
            self.ignored.append(f"{name}.attention.causal (behind it, {behind} sees the future)")
            return Within(part, turned, True), False
        return (Within(part, turned) if turned or not takes & {"bias", "kept"} else part), past


class xFormerEncoderConfig(xFormerBlockConfig):
    """A layer of an encoder: its attention ``multi_head_config``, its feed-forward, and what stands around them."""

    block_type, heads = "encoder", ("multi_head_config",)

    def _stage(self, more: dict[str, Any]) -> Encoder:
        self.simplicial_embeddings = copy.deepcopy(more.pop("simplicial_embeddings", None))
        self.patch_embedding_config = copy.deepcopy(more.pop("patch_embedding_config", None))
        part, past = self._attend("multi_head_config")
        fields = self._fields([self.multi_head_config])  # type: ignore[attr-defined]
        return Encoder(
            **fields, attention=part, causal=past, reversible=self.reversible, patch=self._patch(),
            simplicial=self._simplicial(),
        )  # fmt: skip

    def _simplicial(self) -> Simplicial | None:
        given = self.simplicial_embeddings
        if not given:
            return None
        self.ignored += [f"simplicial_embeddings.{name}" for name in given if name not in ("L", "temperature")]
        return Simplicial(given["L"], given.get("temperature") or 1.0)

    def _patch(self) -> Patch | None:
        given = self.patch_embedding_config
        if not given:
            return None
        self.ignored += [f"patch_embedding_config.{name}" for name in given if name not in PATCH]
        if str(getattr(given.get("pool_type"), "value", given.get("pool_type", "CONV_2D"))) != "CONV_2D":
            raise NotImplementedError(f"patches are those of a convolution, not of {given['pool_type']!r}")
        if given.get("out_channels", self.dim_model) != self.dim_model:
            raise ValueError(f"patches are as wide as the model, {self.dim_model}, not {given['out_channels']}")
        return Patch(given["kernel_size"], given.get("stride"), given.get("padding", 0), given.get("in_channels"))


class xFormerDecoderConfig(xFormerBlockConfig):
    """A layer of a decoder: it attends to its own sequence and, by ``multi_head_config_cross``, to the encoder's."""

    block_type, heads = "decoder", ("multi_head_config_masked", "multi_head_config_cross")

    def _stage(self, more: dict[str, Any]) -> Decoder:
        assert not self.reversible, "decoders are not reversible"
        (own, past), (cross, before) = (self._attend(name) for name in self.heads)
        fields = self._fields([getattr(self, name) for name in self.heads])
        looks = cross.part if isinstance(cross, Within) else cross
        if past and mixes(looks):
            self.ignored.append(
                f"multi_head_config_masked.attention.causal ({type(looks).__name__} looks across for all)"
            )
            cross = Within(looks, cross is not looks and cross.turned)
        if before:
            cross = replace(cross, past=True) if isinstance(cross, Within) else Within(cross, past=True)
        return Decoder(**fields, attention=own, cross=cross, causal=past)


@dataclass
class xFormerStackConfig:
    """A block, how often it is repeated, and whether the layers are reversible."""

    block_config: xFormerBlockConfig
    num_layers: int
    reversible: bool = False

    @property
    def block(self) -> xFormerBlockConfig:
        """The block with both written into it."""
        block = copy.copy(self.block_config)
        assert not self.reversible or isinstance(block, xFormerEncoderConfig), "decoders are not reversible"
        block.num_layers, block.reversible = self.num_layers, self.reversible
        more: dict[str, Any] = {"reversible": self.reversible} if isinstance(block, xFormerEncoderConfig) else {}
        block.stage = replace(block.stage, layers=self.num_layers, **more)
        return block


class xFormerConfig:
    """A model: its blocks one behind the other, encoders and decoders.

    Args:
        stack_configs: a config, or a list or a dict of configs; each an object or the dict of its arguments.
        tie_embedding_weights: whether the encoder embeds by the decoder's tables.
        weight_init: how weights are drawn.

    Example:
        >>> block = {"block_type": "encoder", "dim_model": 8, "num_layers": 2,
        ...          "multi_head_config": {"num_heads": 2, "attention": {"name": "scaled_dot_product"}},
        ...          "feedforward_config": {"name": "MLP", "activation": "relu", "hidden_layer_multiplier": 4}}
        >>> xFormerConfig([block]).stack_configs[0].stage.layers
        2
    """

    def __init__(
        self, stack_configs: Any, tie_embedding_weights: bool = False, weight_init: Any = "vit", **more: Any
    ) -> None:
        self.tie_embedding_weights = tie_embedding_weights
        self.weight_init = xFormerWeightInit(weight_init)
        ignored, self.stack_configs = list(more), [_block(given) for given in _each(stack_configs)]
        for block, given in zip(self.stack_configs, _each(stack_configs), strict=True):
            ignored += block.ignored if isinstance(given, Mapping) else []
        tell(ignored)


def tell(ignored: Sequence[str]) -> None:
    """Warn of what means nothing, all of it at once."""
    if ignored:
        warnings.warn(f"ignored, for nothing here answers to it: {', '.join(sorted(set(ignored)))}", stacklevel=3)


def _each(given: Any) -> Iterator[Any]:
    if isinstance(given, Mapping) and "block_type" not in given:
        yield from given.values()
    else:
        yield from given if isinstance(given, list | tuple) else [given]


def _block(given: Any) -> xFormerBlockConfig:
    if isinstance(given, xFormerStackConfig):
        return given.block
    if isinstance(given, xFormerBlockConfig):
        return given
    kinds = {c.block_type: c for c in (xFormerEncoderConfig, xFormerDecoderConfig)}
    kind = getattr(given.get("block_type"), "value", given.get("block_type"))
    assert kind in kinds, f"block_type={kind!r} is neither 'encoder' nor 'decoder'"
    return kinds[kind](**given, _quiet=True)


def _attention(heads: Given) -> Given:
    """The dict of the attention, which may be a name alone."""
    given = heads["attention"]
    return {"name": given} if isinstance(given, str) else given
