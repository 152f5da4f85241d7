"""The model of every task: words and places, an encoder around the attention, and a head over what it pools.

mean    Σ y[m] / M over the tokens m that are no padding; M counts it, as published
cls     y[0], of a token that stands before all others, for which the last place makes room
pairs   [y, z, y · z, y − z] of the two sequences
head    down relu(up y)
"""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

import xfn
from benchmarks.lra.settings import Settings
from benchmarks.lra.tasks import PAIRS
from xfn import bias, random
from xfn.factory.build import Model
from xfn.parts import catalogue, honours


def config(settings: Settings) -> xfn.Encoder:
    """The encoder, whose attention is a part by its name."""
    options = dict(settings.options)
    kind = catalogue("attention").get(settings.attention)
    if kind is not None and "p" in {f.name for f in fields(kind)}:
        options = {"p": settings.dropout, **options}
    made = xfn.from_dict(
        {
            "name": "encoder",
            "dims": {"model": settings.width, "heads": settings.heads, "length": settings.length,
                     "hidden": settings.multiplier * settings.width},
            "layers": settings.layers,
            "attention": {"name": settings.attention, **options},
            "feedforward": {"name": "mlp", "p": settings.dropout},
            "reversible": settings.reversible,
            "p": settings.dropout,
        }
    )  # fmt: skip
    assert isinstance(made, xfn.Encoder)
    return made


def pads(settings: Settings) -> bool:
    """Whether the attention can be told which keys are padding; if not, it sees padding."""
    return bool(honours(config(settings).attention) & {"bias", "kept"})


def model(settings: Settings) -> Model:
    """``apply(params, ids, lengths, *, key=None) -> (logits [..., classes], aux)``."""
    encoder, E, hides = xfn.build(config(settings)), settings.width, pads(settings)
    pooled = 4 * E if settings.task in PAIRS else E

    def init(key: Tensor) -> dict[str, Any]:
        words, inside, up, down = random.split(key, 4)
        return {
            "words": xfn.init_vocab(words, settings.vocab, settings.length, E),
            "encoder": encoder.init(inside),
            "up": xfn.init_linear(up, pooled, settings.multiplier * E),
            "down": xfn.init_linear(down, settings.multiplier * E, settings.classes),
        }

    def apply(params: Any, ids: Tensor, lengths: Tensor, *, key: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
        if settings.pool == "cls":
            ids = torch.cat([torch.full_like(ids[..., :1], settings.vocab - 1), ids[..., :-1]], -1)
            lengths = (lengths + 1).clamp(max=ids.shape[-1])
        first, second = (None, None) if key is None else random.split(key)
        p = 0.0 if key is None else settings.dropout
        x = xfn.vocab(params["words"], ids, p, key=first)
        seen = bias.span(0, lengths[..., None]) if hides else None
        y, aux = encoder.apply(params["encoder"], x, bias=seen, key=second)
        y = y[..., 0, :] if settings.pool == "cls" else mean(y, lengths)
        if settings.task in PAIRS:
            y, z = y.unbind(-2)
            y = torch.cat([y, z, y * z, y - z], -1)
        return xfn.linear(params["down"], xfn.linear(params["up"], y, "relu")), aux

    return Model(init, apply)


def mean(y: Tensor, lengths: Tensor) -> Tensor:
    """Over all places, of which padding has zeros."""
    padding = torch.arange(y.shape[-2], device=y.device) >= lengths[..., None]
    return y.masked_fill(padding[..., None], 0.0).mean(-2)
