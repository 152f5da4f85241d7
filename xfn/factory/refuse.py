"""What no part can honour is refused before anything runs, in one sentence."""

from collections.abc import Sequence
from typing import Any

from ..parts import honours
from .config import Decoder, Encoder, Stage


def refuse(encoder: Sequence[Stage], decoder: Sequence[Stage], tied: bool) -> None:
    """Raise where the stages of an encoder and of a decoder, either of which may be empty, ask for the impossible."""
    for group, kind in ((encoder, Encoder), (decoder, Decoder)):
        if not all(isinstance(stage, kind) for stage in group):
            raise TypeError("a stack is of encoders or of decoders alone: put both into a Transformer")
        for i, stage in enumerate(group):
            _position(stage, first=i == 0)
            _attention(stage)
            _ends(stage, last=i == len(group) - 1)
            _patch(stage, first=i == 0)
            if isinstance(stage, Encoder) and stage.reversible:
                _reversible(stage)
        _tied(group)
    every = [*encoder, *decoder]
    deep = [stage for stage in every if "alpha" in honours(stage.residual)]
    if deep and len(deep) < len(every):
        raise ValueError(f"{_name(deep[0].residual)} counts the layers of a whole model, so all stages have it or none")
    if encoder and decoder:
        _across(encoder, decoder, tied)


def _attention(stage: Stage) -> None:
    takes, name = honours(stage.attention), _name(stage.attention)
    if stage.causal and not takes & {"bias", "causal"}:
        raise TypeError(f"{name}.apply takes no bias, so it cannot be causal")
    if stage.causal and "grid" in honours(stage.feedforward):
        raise TypeError(f"{_name(stage.feedforward)}.apply sees a grid, so it cannot be causal")
    position = stage.position
    if position is not None and "q" in honours(position) and "q" not in takes:
        raise TypeError(f"{name}.apply takes no q and k, so {_name(position)} has nothing to turn")
    for part in (stage.attention, stage.feedforward):
        if "grid" in honours(part) and getattr(position, "token", False):
            raise TypeError(f"{_name(part)}.apply sees a grid, which has no place for the token of {_name(position)}")


def _position(stage: Stage, first: bool) -> None:
    embeds = "tokens" in honours(stage.position) if stage.position is not None else False
    if embeds and not first:
        raise TypeError(f"{_name(stage.position)}.apply takes tokens, which come to the first stage alone")


def _patch(stage: Stage, first: bool) -> None:
    if not isinstance(stage, Encoder) or stage.patch is None or not first:
        return
    if stage.dims.vocab:
        raise ValueError("tokens are no image: an encoder has Dims.vocab or a patch, not both")
    if stage.patch.channels is None:
        raise ValueError("the first stage needs the channels of its images: write Patch(…, channels=3)")


def _ends(stage: Stage, last: bool) -> None:
    if isinstance(stage, Encoder) and stage.simplicial:
        if not last:
            raise ValueError("simplicial features come behind the last layer, so the last stage alone can have them")
        if stage.dims.model % stage.simplicial.L:
            raise ValueError(f"Dims.model={stage.dims.model} does not divide into simplicial L={stage.simplicial.L}")


def _reversible(stage: Encoder) -> None:
    if not hasattr(stage.residual, "branch"):
        raise TypeError(f"{_name(stage.residual)} has no branch, so its layers cannot be reversible")
    gives = getattr(type(stage.feedforward).apply, "__annotations__", {}).get("return", "")
    if "tuple" in str(gives):
        raise TypeError(f"{_name(stage.feedforward)}.apply returns losses, so its layers cannot be reversible")


def _tied(group: Sequence[Stage]) -> None:
    if any(stage.tie_embeddings for stage in group):
        first, last = group[0].dims, group[-1].dims
        if first.vocab is None or (first.vocab, first.model) != (last.vocab, last.model):
            raise ValueError(
                f"one table cannot embed vocab={first.vocab} tokens in model={first.model} features and predict "
                f"vocab={last.vocab} of model={last.model}"
            )


def _across(encoder: Sequence[Stage], decoder: Sequence[Stage], tied: bool) -> None:
    width = encoder[-1].dims.model
    for stage in decoder:
        assert isinstance(stage, Decoder)
        takes, name = honours(stage.cross), _name(stage.cross)
        if not takes & {"k", "context"}:
            raise TypeError(f"{name}.apply takes no context, so it cannot look at another sequence")
        if "k" not in takes and width != stage.dims.model:
            raise ValueError(
                f"{name}.apply takes contexts of its own width {stage.dims.model}, but one of {width} comes"
            )
    sizes = [(stage.dims.vocab, stage.dims.model) for stage in (encoder[0], decoder[0], decoder[-1])]
    if tied and (sizes[0][0] is None or len(set(sizes)) > 1):
        raise ValueError(f"one table cannot embed source and target and predict: their (vocab, model) are {sizes}")


def _name(part: Any) -> str:
    return type(part).__name__
