"""What no part can honour is refused before anything runs, in one sentence."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

from ..parts import honours, mixes
from .config import Decoder, Encoder, Stage


def refuse(encoder: Sequence[Stage], decoder: Sequence[Stage], tied: bool) -> None:
    """Raise where the stages of an encoder and of a decoder, either of which may be empty, ask for the impossible."""
    for group, kind in ((encoder, Encoder), (decoder, Decoder)):
        if not all(isinstance(stage, kind) for stage in group):
            raise TypeError("a stack is of encoders or of decoders alone: put both into a Transformer")
        for i, stage in enumerate(group):
            _roles(stage)
            _position(stage, first=i == 0)
            _attention(stage)
            _ends(stage, last=i == len(group) - 1)
            _patch(stage, group[i - 1].dims.model if i else None)
            if isinstance(stage, Encoder) and stage.reversible:
                _reversible(stage)
        _tied(group)
    every = [*encoder, *decoder]
    deep = [stage for stage in every if "alpha" in honours(stage.residual)]
    if deep and len(deep) < len(every):
        raise ValueError(f"{_name(deep[0].residual)} counts the layers of a whole model, so all stages have it or none")
    if encoder and decoder:
        _across(encoder, decoder, tied)


def refuse_attention(part: Any, causal: bool, position: Any) -> None:
    """Raise where an attention would have to be causal, or to have its queries and keys turned, and cannot."""
    takes, name = honours(part), _name(part)
    if causal and not takes & {"bias", "causal"}:
        raise TypeError(f"{name}.apply takes no bias, so it cannot be causal")
    if position is not None and "q" in honours(position) and "q" not in takes:
        raise TypeError(f"{name}.apply takes no q and k, so {_name(position)} has nothing to turn")


def refuse_context(part: Any, model: int, width: int) -> None:
    """Raise where an attention of width ``model`` cannot look at another sequence of ``width``."""
    takes, name = honours(part), _name(part)
    if not takes & {"k", "context"}:
        raise TypeError(f"{name}.apply takes no context, so it cannot look at another sequence")
    if "k" not in takes and width != model:
        raise ValueError(f"{name}.apply takes contexts of its own width {model}, but one of {width} comes")


WITHIN, ALONE = frozenset("qkv"), frozenset("x")
ROLES = {
    "attention": (WITHIN, ALONE), "cross": (WITHIN, ALONE), "feedforward": (ALONE,),
    "position": (frozenset({"tokens"}), ALONE, frozenset("qk")), "residual": (frozenset("xf"),),
}  # fmt: skip
"""What the apply of a part is given, by its field."""


def _roles(stage: Stage) -> None:
    for field, roles in ROLES.items():
        part = getattr(stage, field, None)
        if part is not None and honours(part) & {"tokens", "x", "q", "k", "v", "f"} not in roles:
            raise TypeError(
                f"{_name(part)}.apply takes {', '.join(signature(part.apply).parameters)}: it is no {field}"
            )


def _attention(stage: Stage) -> None:
    position = stage.position
    refuse_attention(stage.attention, stage.causal, position)
    if stage.causal and "grid" in honours(stage.feedforward):
        raise TypeError(f"{_name(stage.feedforward)}.apply sees a grid, so it cannot be causal")
    for part in (stage.attention, stage.feedforward):
        if "grid" in honours(part) and getattr(position, "token", False):
            raise TypeError(f"{_name(part)}.apply sees a grid, which has no place for the token of {_name(position)}")


def _position(stage: Stage, first: bool) -> None:
    embeds = "tokens" in honours(stage.position) if stage.position is not None else False
    if embeds and not first:
        raise TypeError(f"{_name(stage.position)}.apply takes tokens, which come to the first stage alone")


def _patch(stage: Stage, before: int | None) -> None:
    if not isinstance(stage, Encoder) or stage.patch is None:
        return
    channels = stage.patch.channels
    if before is not None:
        if channels not in (None, before):
            raise ValueError(f"Patch.channels={channels}, but the stage before has Dims.model={before}: leave them out")
        return
    if stage.dims.vocab:
        raise ValueError("tokens are no image: an encoder has Dims.vocab or a patch, not both")
    if channels is None:
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
    if any(stage.tie_embeddings for stage in encoder):
        raise ValueError("the encoder of a Transformer predicts nothing: write Transformer(…, tie_embeddings=True)")
    for stage in decoder:
        assert isinstance(stage, Decoder)
        refuse_context(stage.cross, stage.dims.model, encoder[-1].dims.model)
        if stage.causal and mixes(stage.cross):
            says = "mixes its queries, so a causal decoder cannot look across by it: write causal=False"
            raise TypeError(f"{_name(stage.cross)}.apply {says}")
    sizes = [(stage.dims.vocab, stage.dims.model) for stage in (encoder[0], decoder[0], decoder[-1])]
    if tied and (sizes[0][0] is None or len(set(sizes)) > 1):
        raise ValueError(f"one table cannot embed source and target and predict: their (vocab, model) are {sizes}")


def _name(part: Any) -> str:
    return type(part).__name__
