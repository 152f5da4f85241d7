"""From old configs to a pair of functions: features come out, and a decoder sees the encoder's result normalised."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from ... import random
from ..._core.params import leaves, tree
from ...bias import Bias
from ...factory import Decoder, Encoder, Model
from ...factory.build import coefficients
from ...factory.refuse import refuse
from ...factory.stack import Stack, children
from ...factory.sublayer import Losses, same_for_all
from ...ops.layer_norm import layer_norm
from ...ops.rms_norm import rms_norm
from ...parts.position.none import None_
from .config import ResidualNormStyle, xFormerBlockConfig, xFormerConfig
from .names import Name, canonical, named
from .parts import square
from .shared import filled, flags, left_out

BARE: dict[str, Callable[..., Tensor]] = {"layer_norm": layer_norm, "rms_norm": rms_norm, "skip": lambda params, x: x}


class Both(NamedTuple):
    """What a model is of: an encoder, a decoder, or both."""

    encoder: Stack | None
    decoder: Stack | None
    flags: Mapping[str, Sequence[bool]]
    tied: bool = False

    def init(self, key: Tensor) -> dict[str, Any]:
        found = {
            name: stack.init(random.fold_in(key, i))
            for i, name in enumerate(("encoder", "decoder")) if (stack := getattr(self, name))
        }  # fmt: skip
        if self.tied:
            del found["encoder"]["position"]
        return tree({path: t for path, t in leaves(found).items() if not left_out(path, self.flags)})

    def apply(
        self, params: Any, source: Tensor, target: Tensor | None = None, *, source_bias: Bias | Tensor | None = None,
        target_bias: Bias | Tensor | None = None, memory_bias: Bias | Tensor | None = None, key: Tensor | None = None,
    ) -> tuple[Tensor, Losses]:  # fmt: skip
        """Features, and the losses of layers by name. Without an encoder, a target alone is ``source``."""
        losses: Losses = {}
        source = source if self.encoder is None else image(self.encoder, source)
        batches = {
            stack.stages[0].batch(x)
            for stack, x in ((self.encoder, source), (self.decoder, source if target is None else target))
            if stack
        }
        if key is not None and len(batches) == 1:  # one example, one key, in both
            key = random.spread(key, batches.pop())
        first, second = children(key, 2)
        seen = Bias.of(source_bias)
        if self.encoder is None:
            own_bias = Bias.of(target_bias) if source_bias is None else seen
            return self.decode(params, source, None, own_bias, Bias(()), losses, second)
        own = filled(params["encoder"], self.flags, "encoder")
        if self.tied:
            own = {**own, "position": params["decoder"]["position"]}
        y = self.encoder.run(own, source, seen, losses, first)
        if self.decoder is None:
            return y, losses
        hidden = same_for_all(seen) if memory_bias is None else Bias.of(memory_bias)
        goal = source if target is None else target
        return self.decode(params, goal, y, Bias.of(target_bias), hidden, losses, second)

    def decode(
        self, params: Any, x: Tensor, memory: Tensor | None, bias: Bias, hidden: Bias, losses: Losses,
        key: Tensor | None,
    ) -> tuple[Tensor, Losses]:  # fmt: skip
        """The decoder's part; pre-norm, its cross attention sees the memory through its own norm."""
        assert self.decoder is not None
        own, pair = filled(params["decoder"], self.flags, "decoder"), None
        if memory is not None:
            residual = self.decoder.last.residual
            if hasattr(residual, "last"):
                memory, own = BARE[residual.norm]({}, memory), through_norms(own)
            pair = (memory, hidden)
        return self.decoder.run(own, x, bias, losses, key, pair), losses


def through_norms(params: Mapping[str, Any]) -> dict[str, Any]:
    """k and v of cross attentions that see γ m + β where they are given m: W (γ m + β) + b = (W γ) m + (W β + b)."""
    if "cross" not in params:
        return {n: through_norms(v) if isinstance(v, Mapping) else v for n, v in params.items()}
    cross, norm = dict(params["cross"]), params.get("cross_norm")
    for name in ("k", "v"):
        if norm and (given := cross.get(name, cross.get("q"))):
            weight, made = given["weight"], dict(given)
            if "bias" in norm:
                made["bias"] = weight @ norm["bias"] + made.get("bias", 0)
            cross[name] = {**made, "weight": weight * norm["weight"]}
    return {**params, "cross": cross}


def image(stack: Stack, x: Tensor) -> Tensor:
    """What has patches, as an image ``[batch, channels, height, width]``."""
    if stack.stages[0].patch is None or x.dim() != 3:
        return x
    side = square(x.shape[-2])
    y: Tensor = x.transpose(-1, -2).unflatten(-1, (side, side))
    return y


def assemble(config: xFormerConfig) -> Both:
    """The stacks of a config, checked."""
    blocks = config.stack_configs
    sides = {kind: [b for b in blocks if b.block_type == kind] for kind in ("encoder", "decoder")}
    back = {block.reversible for block in sides["encoder"]}
    deep = {block.residual_norm_style == ResidualNormStyle.DeepNorm for block in blocks}
    assert len(back) < 2, "all encoders are reversible, or none is"
    assert len(deep) < 2, "all layers have deepnorm, or none has"
    tied = config.tie_embedding_weights and all(sides.values())
    assert not (True in back and config.tie_embedding_weights), "reversible layers have no tied embeddings"
    assert not (True in back and True in deep), "reversible layers have no deepnorm"
    return stacks(
        *([stage_of(b, i, config.weight_init.value) for i, b in enumerate(side)] for side in sides.values()), tied=tied,
        flags=flags(blocks),
    )  # fmt: skip


def stage_of(block: xFormerBlockConfig, at: int, weights: str | None) -> Any:
    """A block's stage; positions are those of the first one alone."""
    stage = replace(block.stage, weights=weights)
    return replace(stage, position=None_(), dims=replace(stage.dims, vocab=None)) if at else stage


def stacks(
    encoder: Sequence[Encoder], decoder: Sequence[Decoder], *, tied: bool, flags: Mapping[str, Sequence[bool]],
    memory: int | None = None, deep: Mapping[str, Any] | None = None,
) -> Both:  # fmt: skip
    """The stacks of stages, either of which may be empty; ``memory`` is the width of what a decoder alone looks at."""
    for stage in encoder:
        L = stage.simplicial.L if stage.simplicial else 1
        assert stage.dims.model % L == 0, f"dim_model={stage.dims.model} does not divide into L={L}"
    refuse(encoder, decoder, False)
    deep = coefficients(encoder, decoder) if deep is None else deep
    first = Stack(encoder, None, deep.get("encoder"), predicts=False) if encoder else None
    width = first.width if first else memory
    second = Stack(decoder, width, deep.get("decoder"), predicts=False) if decoder else None
    if second and width:
        _one_memory(decoder)
    for stack in (first, second):
        if stack:
            stack.check()
    if tied and not (first and second and first.stages[0].takes == second.stages[0].takes):
        raise ValueError("embeddings are tied where encoder and decoder have positions of one kind")
    return Both(first, second, flags, tied)


def _one_memory(decoder: Sequence[Decoder]) -> None:
    """Raise where decoders do not all see the memory alike."""
    if len({stage.residual for stage in decoder}) > 1:
        raise NotImplementedError("all decoders have one style and one norm, where they look at an encoder")


def names_of(made: Both, alone: bool = False) -> list[Name]:
    """The names of all parameters."""
    shapes = leaves(made.init(random.key(0)))
    found: list[Name] = []
    for side in ("encoder", "decoder"):
        stack: Stack | None = getattr(made, side)
        if stack is not None:
            paths = [path.removeprefix(f"{side}.") for path in shapes if path.startswith(f"{side}.")]
            found += [
                n._replace(path=f"{side}.{n.path}") for n in named(stack, paths, "" if alone else f"{side}s.", alone)
            ]
    return found


def build(config: xFormerConfig) -> Model:
    """The model of a config as a pair of functions.

    Args:
        config: that of a model.

    Returns:
        :class:`xfn.factory.Model` ``(init, apply)``: ``apply(params, source, target=None, *, source_bias=None,
        target_bias=None, key=None) -> (features, aux)``.

    Raises:
        AssertionError: what may not stand together.
        TypeError, ValueError: a part cannot do what the config asks of it.

    Example:
        >>> heads = {"num_heads": 2, "attention": {"name": "scaled_dot_product"}}
        >>> block = {"block_type": "encoder", "dim_model": 8, "multi_head_config": heads,
        ...          "feedforward_config": {"name": "MLP", "activation": "relu", "hidden_layer_multiplier": 4}}
        >>> init, apply = build(xFormerConfig([block]))
        >>> y, aux = apply(init(random.key(0)), random.normal(random.key(1), (3, 5, 8)))
        >>> y.shape
        torch.Size([3, 5, 8])
    """
    made = assemble(config)
    return Model(made.init, made.apply)


def params_from_state_dict(config: xFormerConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The parameters of :func:`build` from a checkpoint of the old model.

    Args:
        config: that of the model which wrote it.
        state_dict: as its ``state_dict()`` gave it, of versions 0.0.21 to 0.0.28.

    Returns:
        A tree of dicts of tensors. What a checkpoint does not hold, as the features of favor, is drawn from key 0; a
        norm behind the last layer, where it lacks one, has weights 1 and biases 0.

    Raises:
        KeyError: names that the model lacks, or has besides.

    Example:
        >>> from xfn.compat.factory import xFormer
        >>> heads = {"num_heads": 2, "attention": {"name": "scaled_dot_product"}}
        >>> block = {"block_type": "encoder", "dim_model": 8, "multi_head_config": heads,
        ...          "feedforward_config": {"name": "MLP", "activation": "relu", "hidden_layer_multiplier": 4}}
        >>> config = xFormerConfig([block])
        >>> list(params_from_state_dict(config, xFormer.from_config(config).state_dict())["encoder"]["layers"])
        ['0']
    """
    made = assemble(config)
    drawn = leaves(made.init(random.key(0)))
    names = names_of(made)
    wanted = {n.name: n.out(drawn[n.path]) for n in names}
    given = dict(state_dict)
    if made.tied:
        given = {name: t for name, t in given.items() if not name.startswith("encoders.0.pose_encoding.")}
    found = canonical(given, wanted)
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    if missing or extra:
        raise KeyError(f"the checkpoint lacks {missing}, and has {extra} besides")
    for name in wanted:
        if found[name].shape != wanted[name].shape:
            raise ValueError(f"{name} is {list(wanted[name].shape)}, but {list(found[name].shape)} was given")
    return tree({n.path: n.read(found[n.name]) for n in names})
