"""What ``python -m benchmarks.run models`` times: models from configs, trained for a step, against the same in torch.nn
with its scaled_dot_product_attention; and per-example gradients against those of the batch."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, func, nn

import xfn
from benchmarks.attention.problem import Settings
from benchmarks.contest import Call, Contest, Row, faster, within
from xfn import random
from xfn.factory import Patch
from xfn.parts.position.learned import Learned

LAYERS, WIDTH, HEADS, VOCAB = 6, 384, 6, 256


def rows(settings: Settings) -> Iterator[Row]:
    for B, S in ((8, 64), (4, 256)):
        name = f"gpt {LAYERS}x{WIDTH} step {B}x{S}"
        yield Row("gpt", name, partial(gpt, B, S), torch.float32, goals=(faster(1.0, of="torch"),))
    yield Row(
        "vit", f"vit {LAYERS}x{WIDTH} step 8x64", partial(vit, 8, 64), torch.float32, goals=(faster(1.0, of="torch"),)
    )
    goals = (within(1.5, "one gradient"),)
    yield Row(
        "vmap(grad)", f"gpt {LAYERS}x{WIDTH} vmap(grad) of 32x64", partial(each, 32, 64), torch.float32, goals=goals
    )


def config(S: int) -> xfn.Encoder:
    return xfn.Encoder(xfn.Dims(WIDTH, HEADS, S, VOCAB), LAYERS, causal=True)


def gpt(B: int, S: int) -> Contest:
    tokens = random.randint(random.key(0), (B, S + 1), 0, VOCAB)
    ours, theirs = xfn.nn.Encoder(config(S), key=random.key(0)), Torch(nn.Embedding(VOCAB, WIDTH), S, True, VOCAB)

    def step(net: nn.Module) -> Any:
        logits = net(tokens[:, :-1])
        logits = logits[0] if isinstance(logits, tuple) else logits
        return gradients(net, F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))

    return steps(step, ours, theirs)


def vit(B: int, S: int) -> Contest:
    side = int(S**0.5)
    images = random.normal(random.key(0), (B, 3, 4 * side, 4 * side))
    patched = xfn.Encoder(xfn.Dims(WIDTH, HEADS, S), LAYERS, position=Learned(), patch=Patch(4, channels=3))
    ours = xfn.nn.Encoder(patched, key=random.key(0))
    theirs = Torch(Patches(), S, False, None)

    def step(net: nn.Module) -> Any:
        found = net(images)
        return gradients(net, (found[0] if isinstance(found, tuple) else found).square().mean())

    return steps(step, ours, theirs)


def each(B: int, S: int) -> Contest:
    model, tokens = xfn.build(config(S)), random.randint(random.key(0), (B, S + 1), 0, VOCAB)
    params = model.init(random.key(0))

    def loss(params: Any, tokens: Tensor) -> Tensor:
        logits, _ = model.apply(params, tokens[..., :-1])
        return F.cross_entropy(logits.flatten(0, -2), tokens[..., 1:].flatten())

    ours = Call(lambda: func.vmap(func.grad(loss), (None, 0))(params, tokens))
    return Contest(ours, {}, {"one gradient": Call(lambda: func.grad(loss)(params, tokens))}, comparable=False)


def steps(step: Callable[[nn.Module], Any], ours: nn.Module, theirs: nn.Module) -> Contest:
    peers = {"torch": Call(lambda: step(theirs))}
    return Contest(Call(lambda: step(ours)), peers, comparable=False)


def gradients(net: nn.Module, loss: Tensor) -> Any:
    return torch.autograd.grad(loss, [*net.parameters()])


class Block(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, HEADS, -1)).movedim(-3, 0).transpose(-3, -2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(-3, -2).flatten(-2))
        return x + self.mlp(self.second(x))


class Torch(nn.Module):
    """What the configs say, in torch.nn."""

    def __init__(self, embed: nn.Module, S: int, causal: bool, vocab: int | None) -> None:
        super().__init__()
        self.embed, self.positions = embed, nn.Parameter(torch.randn(S, WIDTH) * 0.02)
        self.blocks = nn.Sequential(*(Block(causal) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Identity() if vocab is None else nn.Linear(WIDTH, vocab)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.blocks(self.embed(x) + self.positions)))
        return y


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(-2).mT  # type: ignore[no-any-return]
