"""What ``python -m benchmarks.run encoder`` times and weighs: every attention part in an encoder, its value and the
gradient of its weights, against torch.nn's own encoder; beside it, the same encoder with dense attention."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import xfn
from benchmarks.attention.problem import Settings
from benchmarks.contest import Call, Contest, Row, faster, lighter
from benchmarks.transformer import TORCH, encoder
from xfn import random
from xfn.parts import catalogue

DENSE = "dot_product"


def rows(settings: Settings) -> Iterator[Row]:
    """Squares, for some parts see a grid."""
    E, H, layers = (32, 4, 1) if settings.quick else (256, 8, 2)
    for S in (64,) if settings.quick else (1024, 4096):
        for part in catalogue("attention"):
            goals = (faster(1.0), lighter(1.0)) if part == DENSE else ()
            make = partial(contest, part, S, E, H, layers)
            yield Row(f"{S} tokens", f"{part} {layers}x{E} 1x{S}", make, torch.float32, goals=goals, memory=True)


def contest(part: str, S: int, E: int, H: int, layers: int) -> Contest:
    x = random.normal(random.key(0), (1, S, E))

    def ours(part: str) -> nn.Module:
        dims = {"model": E, "heads": H, "length": S}
        config = xfn.from_dict({"dims": dims, "layers": layers, "attention": {"name": part}})
        return xfn.nn.Module(xfn.build(config), key=random.key(1))

    def step(net: nn.Module) -> Call:
        return Call(lambda: gradient(net.eval(), x))

    beside = {} if part == DENSE else {DENSE: step(ours(DENSE))}
    return Contest(step(ours(part)), {TORCH: step(encoder(E, H, layers))}, beside, comparable=False)


def gradient(net: nn.Module, x: Tensor) -> Any:
    found = net(x)
    loss = (found[0] if isinstance(found, tuple) else found).square().mean()
    return [g for g in torch.autograd.grad(loss, [*net.parameters()], allow_unused=True) if g is not None]
