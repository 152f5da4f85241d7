"""From a config to a pair of functions."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..ops.residual import DeepNorm, deepnorm_coefficients
from .config import Config, Decoder, Encoder, Stage, Transformer
from .refuse import refuse
from .stack import Both, Stack


class Model(NamedTuple):
    """A model as a pair of functions.

    Attributes:
        init: ``init(key) -> params``, a tree of dicts of tensors.
        apply: ``apply(params, x, *, bias=None, key=None) -> (y, aux)``, or ``apply(params, source, target, *,
            source_bias=None, target_bias=None, key=None)``; with a key, in training.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]


def build(config: Config) -> Model:
    """The model that a config describes.

    Layers are repeated as often as the config says, each with parameters of its own. Several stages follow each other:
    where one is wider than the one before, a linear map or its patches lie between. What ends a model, a norm,
    simplicial features and logits, stands behind the last layer of the last stage.

    Args:
        config: an :class:`xfn.Encoder`, an :class:`xfn.Decoder`, an :class:`xfn.Transformer`, or a list of encoders or
            of decoders.

    Returns:
        :class:`Model` ``(init, apply)``. ``apply`` takes tokens ``[..., M]`` where ``Dims.vocab`` is given, images
        ``[..., C, h, w]`` where there are patches, and else ``[..., M, E]``; it gives logits ``[..., M, W]``, or
        ``[..., M, E]``, and the losses of its layers by name, summed over layers and averaged over examples.

    Raises:
        TypeError, ValueError: a part cannot do what the config asks of it.

    Examples:
        >>> import torch, xfn
        >>> config = xfn.Encoder(xfn.Dims(model=32, heads=4, length=64, vocab=100), layers=2, causal=True)
        >>> init, apply = build(config)
        >>> params = init(xfn.random.key(0))
        >>> logits, aux = apply(params, torch.tensor([[3, 1, 4], [1, 5, 9]]))
        >>> logits.shape, aux
        (torch.Size([2, 3, 100]), {})

        What reads, and what writes:

        >>> decoder = xfn.Decoder(xfn.Dims(model=32, heads=4, length=64, vocab=100))
        >>> both = build(xfn.Transformer(config, decoder, tie_embeddings=True))
        >>> both.apply(both.init(xfn.random.key(0)), torch.tensor([3, 1, 4]), torch.tensor([2, 7]))[0].shape
        torch.Size([2, 100])
    """
    made = structure(config)
    return Model(made.init, made.apply)


def structure(config: Config) -> Stack | Both:
    """What a model's functions are methods of."""
    if isinstance(config, Transformer):
        encoder, decoder = stages(config.encoder), stages(config.decoder)
        refuse(encoder, decoder, config.tie_embeddings)
        deep = coefficients(encoder, decoder)
        first = Stack(encoder, None, deep.get("encoder"), predicts=False)
        lent = config.tie_embeddings
        second = Stack(decoder, first.width, deep.get("decoder"), tied=lent, lent=lent)
        first.check()
        second.check()
        return Both(first, second)
    alone = stages(config)
    encoder, decoder = ((), alone) if isinstance(alone[0], Decoder) else (alone, ())
    refuse(encoder, decoder, False)
    made = Stack(alone, None, next(iter(coefficients(encoder, decoder).values()), None))
    made.check()
    return made


def stages(config: Stage | Sequence[Stage]) -> Sequence[Stage]:
    """One stage or several, as several."""
    found = (config,) if not isinstance(config, list | tuple) else tuple(config)
    if not found or not all(isinstance(stage, Encoder | Decoder) for stage in found):
        raise TypeError(f"a model is an Encoder, a Decoder, a Transformer, or a list of stages, but got {config!r}")
    return found


def coefficients(encoder: Sequence[Stage], decoder: Sequence[Stage]) -> dict[str, DeepNorm]:
    """DeepNet's α and β of each of the two."""
    return deepnorm_coefficients(*(sum(stage.layers for stage in group) for group in (encoder, decoder)))
