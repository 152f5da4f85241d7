"""A tour of some ninety seconds: a language model from pure functions, trained on the CPU, then differentiated
in every way there is, beside the other attentions that torch has.

    python -m examples.tour [--quick] [--seed N]

    B batch        M characters in a row        H heads        K features of a head        W = H · K
"""

import argparse
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, func
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

import xfn
from xfn import bias, random

from . import _compare

Params = dict[str, Any]
Attend = Callable[..., Tensor]

HEADS, FEATURES, LAYERS, DROP = 3, 32, 3, 0.1
WIDTH = HEADS * FEATURES
RULED = "|", "+-", "---", "===", "***"
BAR = "{desc}  {bar} {n_fmt}/{total_fmt} {elapsed}{postfix}"


@dataclass(frozen=True)
class Size:
    """How much of everything: ``M`` and ``B`` in training, ``length`` and ``batch`` in the table."""

    steps: int
    M: int
    B: int
    written: int
    length: int
    batch: int
    members: int
    repeats: int


FULL = Size(steps=420, M=64, B=32, written=400, length=1024, batch=2, members=4, repeats=5)
QUICK = Size(steps=12, M=32, B=8, written=80, length=128, batch=2, members=2, repeats=1)


# The model: parameters are a nested dict, everything else is a function of them.


def init(key: Tensor, symbols: int) -> Params:
    """Parameters, drawn with one key."""
    table, *layers = random.split(key, 1 + LAYERS)
    return {
        "table": 0.05 * random.normal(table, (symbols, WIDTH)),
        "layers": [init_layer(key) for key in layers],
        "gain": torch.ones(WIDTH),
    }


def init_layer(key: Tensor) -> Params:
    def matrix(key: Tensor, rows: int, columns: int, size: float = 1.0) -> Tensor:
        return size / math.sqrt(rows) * random.normal(key, (rows, columns))

    # What adds to the stream starts small, so that the depth does not make it grow.
    qkv, out, up, down = random.split(key, 4)
    small = (2 * LAYERS) ** -0.5
    return {
        "attention": {
            "gain": torch.ones(WIDTH),
            "qkv": matrix(qkv, WIDTH, 3 * WIDTH),
            "out": matrix(out, WIDTH, WIDTH, small),
        },
        "mlp": {
            "gain": torch.ones(WIDTH),
            "up": matrix(up, WIDTH, 4 * WIDTH),
            "down": matrix(down, 4 * WIDTH, WIDTH, small),
        },
    }


def causal(q: Tensor, k: Tensor, v: Tensor, key: Tensor | None = None) -> Tensor:
    """Attention to the past; a key drops some of its weights."""
    return xfn.attention(q, k, v, bias.causal(), 0.0 if key is None else DROP, key=key)


def model(params: Params, tokens: Tensor, attend: Attend = causal, key: Tensor | None = None) -> Tensor:
    """Logits of the next character, ``[..., M]`` to ``[..., M, symbols]``; a key turns dropout on."""
    table: Tensor = params["table"]
    x = 5 * F.embedding(tokens, table)
    for i, layer in enumerate(params["layers"]):
        x = x + mix(layer["attention"], x, attend if key is None else partial(attend, key=random.fold_in(key, i)))
        x = x + think(layer["mlp"], x)
    return norm(params["gain"], x) @ table.mT


def mix(params: dict[str, Tensor], x: Tensor, attend: Attend) -> Tensor:
    q, k, v = (norm(params["gain"], x) @ params["qkv"]).unflatten(-1, (3, HEADS, FEATURES)).unbind(-3)
    return attend(rotate(q), rotate(k), v).flatten(-2) @ params["out"]  # [..., M, H, K] to [..., M, W]


def think(params: dict[str, Tensor], x: Tensor) -> Tensor:
    return F.gelu(norm(params["gain"], x) @ params["up"]) @ params["down"]


def norm(gain: Tensor, x: Tensor) -> Tensor:
    return gain * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def rotate(x: Tensor) -> Tensor:
    """Rotary positions: pairs of features turn by an angle that grows along M."""
    speed = 10000 ** -torch.linspace(0, 1, FEATURES // 2)
    angle = torch.arange(x.shape[-3])[:, None, None] * speed
    u, v = x.chunk(2, -1)
    return torch.cat([u * angle.cos() - v * angle.sin(), u * angle.sin() + v * angle.cos()], -1)


def loss(params: Params, tokens: Tensor, attend: Attend = causal, key: Tensor | None = None) -> Tensor:
    """Nats per character."""
    logits = model(params, tokens[..., :-1], attend, key)
    return F.cross_entropy(logits.flatten(0, -2), tokens[..., 1:].flatten())


# Reading, training, writing.


def batch(text: Tensor, key: Tensor, B: int, M: int) -> Tensor:
    """``[B, M + 1]`` characters from anywhere in a text."""
    return text[random.randint(key, (B, 1), 0, len(text) - M) + torch.arange(M + 1)]


def train(params: Params, text: Tensor, held: Tensor, key: Tensor, size: Size) -> tuple[float, float]:
    """Updates ``params`` in place; the validation loss before and after."""
    leaves = tree_leaves(params)
    optimizer = torch.optim.AdamW(leaves, betas=(0.9, 0.99), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, size.steps, pct_start=0.15)
    before = after = loss(params, held).item()

    # One key per step: half of it draws the batch, half of it the dropout.
    with tqdm(range(size.steps), "training", leave=False, ncols=79, disable=None, bar_format=BAR) as steps:
        for step in steps:
            draw, drop = random.split(random.fold_in(key, step))
            slopes, now = func.grad_and_value(loss)(params, batch(text, draw, size.B, size.M), key=drop)
            for leaf, slope in zip(leaves, tree_leaves(slopes), strict=True):
                leaf.grad = slope
            optimizer.step()
            schedule.step()

            # The validation loss is dear, so it is taken now and then.
            if (step + 1) % 30 == 0 or step + 1 == size.steps:
                after = loss(params, held).item()
            steps.set_postfix_str(f"loss {now:.2f}, validation {after:.2f}", refresh=False)
    return before, after


def write(params: Params, tokens: Tensor, key: Tensor, size: Size) -> Tensor:
    """The tokens and those that the model puts after them, drawn one by one at temperature 0.7."""
    for i in range(size.written):
        logits = model(params, tokens[-size.M :])[-1]
        gumbel = -random.uniform(random.fold_in(key, i), logits.shape).log().neg().log()
        tokens = torch.cat([tokens, (logits / 0.7 + gumbel).argmax(keepdim=True)])
    return tokens


def read() -> tuple[Tensor, list[str]]:
    """Python's own manual without its tables and indents, as :func:`encode` has it."""
    lines = "\n\n".join(topics[name] for name in sorted(topics)).splitlines()
    return encode("\n".join(line.strip() for line in lines if not any(mark in line for mark in RULED)))


def encode(text: str) -> tuple[Tensor, list[str]]:
    """A text as numbers, and what the numbers stand for."""
    symbols = sorted(set(text))
    number = {symbol: i for i, symbol in enumerate(symbols)}
    return torch.tensor([number[symbol] for symbol in text]), symbols


def main(arguments: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Runs the tour; what became of each transform with each attention."""
    parser = argparse.ArgumentParser(description="A small language model, and every derivative of it.")
    parser.add_argument("--quick", action="store_true", help="a few steps and tiny sizes, in some ten seconds")
    parser.add_argument("--seed", type=int, default=0, help="the key that all is drawn with")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL

    # Steps this small gain little from a third thread, and lose much from it where cores are shared.
    torch.set_num_threads(min(2, torch.get_num_threads()))

    # The last tenth of the text is held back.
    text, symbols = read()
    seen, unseen = text.split(len(text) * 9 // 10 + 1)
    weights, batches, steps, draws, other = random.split(random.key(options.seed), 5)
    params = init(weights, len(symbols))
    count = sum(leaf.numel() for leaf in tree_leaves(params))
    print(f"text      Python's manual, {len(text):,} characters, {len(symbols)} different ones")
    print(f"model     {count:,} parameters in {LAYERS} layers, {HEADS} heads of {FEATURES} features")
    before, after = train(params, seen, batch(unseen, batches, 64, size.M), steps, size)
    print(f"training  {size.steps} steps, validation loss from {before:.2f} to {after:.2f} nats per character")

    # What it writes.
    start = torch.tensor([symbols.index(symbol) for symbol in "The "])
    written = "".join(symbols[i] for i in write(params, start, draws, size))
    print("writing   " + "\n          ".join(textwrap.wrap(written, 69)) + "\n")

    # The loss of that very model, on longer sequences, with one attention after the other.
    point = _compare.Point(
        loss,
        params,
        direction=init(other, len(symbols)),
        members=func.vmap(partial(init, symbols=len(symbols)))(random.split(other, size.members)),
        tokens=batch(unseen, batches, size.batch, size.length),
    )
    print(f"Its loss on {size.batch} sequences of {size.length} characters, threads: {torch.get_num_threads()}\n")
    states = _compare.show(point, {"xfn": causal} | _compare.PEERS, size.repeats)
    print("\nA model of pure functions, every derivative of it, and who can take them: all of it")
    print("was measured just now. Go on with README.md, or let make test prove the numbers.")
    return states


if __name__ == "__main__":
    main()
