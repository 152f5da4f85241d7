"""A language model from a config: trained on Python's manual, saved, read again, and asked to write.

    python -m examples.microgpt [--quick] [--seed N] [--plot FILE] [--text FILE]

A decoder of three layers with rotary positions learns to predict characters, as a module under torch's own optimiser.
Its parameters go through a file of safetensors into the pure function, which writes the sample. It promises 1.55 nats
for each character of the last tenth of the manual, which it has not read; the picture has the way there.
"""

import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import xfn
from xfn import random
from xfn.parts.feedforward.swiglu import Swiglu
from xfn.parts.position.rotary import Rotary
from xfn.parts.residual.pre import Pre

from ._shared import Promise, borrowed, count, drawing, one_cycle, options, progress, save
from .tour import batch, encode, read

PROMISE = Promise("nats per character", 1.55, least=False, form=".2f")

M, B, STEPS = 64, 32, 800


def config(symbols: int) -> xfn.Decoder:
    return xfn.Decoder(
        xfn.Dims(model=96, heads=3, length=M, vocab=symbols),
        layers=3,
        feedforward=Swiglu(),
        position=Rotary(),
        residual=Pre("rms_norm"),
        tie_embeddings=True,
    )


def loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def train(net: torch.nn.Module, text: Tensor, held: Tensor, key: Tensor, steps: int) -> list[tuple[int, float]]:
    """Updates the module; its loss on what is held back, now and then."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=8e-3, betas=(0.9, 0.99), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step, steps))
    seen = []
    bar = progress(range(steps), "training")
    for step in bar:
        tokens = batch(text, random.fold_in(key, step), B, M)
        now = loss(net(tokens[:, :-1])[0], tokens)
        optimizer.zero_grad()
        now.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 60 == 0 or step + 1 == steps:
            with torch.no_grad():
                seen.append((step + 1, loss(net(held[:, :-1])[0], held).item()))
            bar.set_postfix_str(f"loss {now:.2f}, held back {seen[-1][1]:.2f}")
    return seen


def main(arguments: Sequence[str] | None = None) -> float:
    """Trains, saves, reads and writes; nats per character."""
    chosen = options(__doc__, arguments, text={"type": Path, "help": "a file to learn instead of Python's manual"})
    torch.manual_seed(chosen.seed)
    weights, asked, steps, draws = random.split(random.key(chosen.seed), 4)
    text, symbols = encode(chosen.text.read_text()) if chosen.text else read()
    learned, unread = text.split(len(text) * 9 // 10 + 1)

    made = config(len(symbols))
    net = xfn.nn.Module(xfn.build(made), weights)
    with torch.no_grad():
        net.params.tree()["embedding"]["weight"].mul_(5)  # as drawn, tokens are drowned by what the layers add
    print(f"model     {count(net.params.tree()):,} parameters, {len(learned):,} characters to learn from")
    seen = train(net, learned, batch(unread, asked, 128, M), steps, 8 if chosen.quick else STEPS)

    # Names in the file are paths of the tree that the function takes.
    files, apply = borrowed("safetensors.torch", "safetensors"), xfn.build(made).apply
    with tempfile.TemporaryDirectory() as folder:
        files.save_file(net.state_dict(), f"{folder}/microgpt.safetensors")
        again = xfn.nn.Module(xfn.build(made))
        again.load_state_dict(files.load_file(f"{folder}/microgpt.safetensors"))
    params = again.params.tree()

    # At temperature 0.7: the greatest of logits to which Gumbel noise is added.
    tokens = torch.tensor([symbols.index(symbol) for symbol in "The "])
    with torch.no_grad():
        for i in range(20 if chosen.quick else 350):
            logits = apply(params, tokens[-M:])[0][-1]
            gumbel = -random.uniform(random.fold_in(draws, i), logits.shape).log().neg().log()
            tokens = torch.cat([tokens, (logits / 0.7 + gumbel).argmax(keepdim=True)])
    print("writing   " + "\n          ".join(textwrap.wrap("".join(symbols[i] for i in tokens), 69)))

    if chosen.plot:
        figure, (panel,) = drawing(4.2, 2.4)
        panel.plot(*zip(*seen, strict=True), ".-")
        panel.axhline(PROMISE.bar, color="gray", linewidth=0.8, linestyle=":")
        panel.set(xlabel="steps", ylabel="nats per character")
        save(figure, chosen.plot)
    return PROMISE.show(seen[-1][1], chosen.quick)


if __name__ == "__main__":
    main()
