"""Models from configs learn one batch by heart."""

from collections.abc import Callable

import torch
from torch import Tensor

import xfn
from xfn import nn, random
from xfn.factory import Level, Patch, hierarchical
from xfn.parts.attention.dot_product import DotProduct
from xfn.parts.feedforward.mlp import MLP
from xfn.parts.position.learned import Learned
from xfn.parts.position.rotary import Rotary

DIMS = xfn.Dims(model=32, heads=4, length=12, vocab=16)
TOKENS = random.randint(random.key(0), (6, 12), 1, 16)
IMAGES = random.normal(random.key(1), (8, 3, 8, 8))
CLASSES = torch.arange(8) % 4


def cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), wanted.flatten())


def learns(net: torch.nn.Module, loss: Callable[[], Tensor], steps: int, rate: float = 3e-3) -> None:
    """The loss falls from that of a guess to a twentieth of it."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate)
    first = loss().item()
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert loss().item() < first / 20


def test_a_gpt() -> None:
    config = xfn.Decoder(DIMS, 2, DotProduct(p=0.05), feedforward=MLP(p=0.05), tie_embeddings=True)
    net = nn.Decoder(config, key=random.key(0))
    learns(net, lambda: cross_entropy(net(TOKENS[:, :-1])[0], TOKENS[:, 1:]), 150)
    written = TOKENS[:, :4]
    net.eval()
    for _ in range(6):
        written = torch.cat([written, net(written)[0][:, -1:].argmax(-1)], -1)
    assert (written == TOKENS[:, :10]).float().mean() > 0.9


def test_a_bert() -> None:
    net = nn.Encoder(xfn.Encoder(DIMS, 2, position=Rotary(), weights="timm"), key=random.key(0))
    hidden = random.bernoulli(random.key(2), 0.25, (6, 12))
    masked = torch.where(hidden, 0, TOKENS)
    learns(net, lambda: cross_entropy(net(masked)[0][hidden], TOKENS[hidden]), 100)


def test_an_encoder_and_decoder() -> None:
    net = nn.Transformer(xfn.Transformer(xfn.Encoder(DIMS, 2), xfn.Decoder(DIMS, 2)), key=random.key(0))
    target = TOKENS.flip(-1)
    learns(net, lambda: cross_entropy(net(TOKENS, target[:, :-1])[0], target[:, 1:]), 100)


def test_a_vision_transformer() -> None:
    dims = xfn.Dims(model=32, heads=4, length=16)
    config = xfn.Encoder(dims, 2, position=Learned(token=True), patch=Patch(2, channels=3), weights="vit")
    net, head = nn.Encoder(config, key=random.key(0)), nn.Linear(32, 4, key=random.key(1))
    both = torch.nn.ModuleList([net, head])
    learns(both, lambda: cross_entropy(head(net(IMAGES)[0][:, 0]), CLASSES), 60)


def test_a_metaformer() -> None:
    levels = [Level(16, DotProduct(), 2), Level(32, DotProduct(), kernel=2, padding=0)]
    model = xfn.build(hierarchical(levels, (8, 8), head=8))
    net, head = nn.Module(model, random.key(0)), nn.Linear(32, 4, key=random.key(1))
    both = torch.nn.ModuleList([net, head])
    learns(both, lambda: cross_entropy(head(net(IMAGES)[0].mean(-2)), CLASSES), 60)


def test_a_reversible_encoder() -> None:
    net = nn.Encoder(xfn.Encoder(DIMS, 3, DotProduct(p=0.05), causal=True, reversible=True), key=random.key(0))
    learns(net, lambda: cross_entropy(net(TOKENS[:, :-1])[0], TOKENS[:, 1:]), 100)
