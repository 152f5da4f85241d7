"""What ``python -m benchmarks.run transformer`` times: steps of training an encoder, against torch.nn's own encoder of
the same weights, on shapes whose width and length grow. Its page ends with the two tables by which this is usually
told, seconds and memory of a whole training, and with the loss at both ends of it."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

import xfn
from benchmarks.attention.problem import Settings
from benchmarks.contest import OURS, Call, Contest, Row, faster, lighter
from benchmarks.report import Result
from xfn import random

STEPS, LAYERS, HEADS, RATE = 20, 2, 8, 1e-3
SHAPES = ((16, 128, 128), (2, 1024, 1024), (1, 1024, 2048))
"""Batch, length, width."""
TORCH = "torch"


def rows(settings: Settings) -> Iterator[Row]:
    goals = (faster(1.0, of=TORCH), lighter(1.5, of=TORCH))
    for B, S, E in ((2, 32, 64),) if settings.quick else SHAPES:
        name = f"emb {E} - heads {HEADS}"
        yield Row("training", name, partial(contest, B, S, E), torch.float32, goals=goals, memory=True)


def contest(B: int, S: int, E: int) -> Contest:
    ours = xfn.nn.Encoder(xfn.Encoder(xfn.Dims(E, HEADS, S), LAYERS), key=random.key(0))
    theirs = encoder(E, HEADS, LAYERS)
    copy(ours, theirs)
    x = random.normal(random.key(1), (B, S, E))
    runs = {OURS: Training(ours, x), TORCH: Training(theirs, x)}

    def tell() -> dict[str, str]:
        return {
            name: f"loss from {run.losses(STEPS)[0]:.3f} to {run.losses(STEPS)[-1]:.3f}" for name, run in runs.items()
        }

    return Contest(Call(runs[OURS].step), {TORCH: Call(runs[TORCH].step)}, tell=tell)


class Training:
    """Adam teaches a net to say at each place what stood at the place before."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        self.net, self.x, self.y = net.train(), x, x.roll(1, -2)
        self.optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
        self.seen: list[float] = []

    def step(self) -> Tensor:
        found = self.net(self.x)
        loss = nn.functional.mse_loss(found[0] if isinstance(found, tuple) else found, self.y)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.seen.append(loss.item())
        return loss.detach()

    def losses(self, n: int) -> list[float]:
        """Of the first steps; those that were not timed are made now."""
        while len(self.seen) < n:
            self.step()
        return self.seen[:n]


def encoder(E: int, H: int, layers: int) -> nn.TransformerEncoder:
    """torch.nn's, of norms before and a norm behind, without dropout."""
    layer = nn.TransformerEncoderLayer(E, H, 4 * E, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(E), enable_nested_tensor=False)


def copy(ours: nn.Module, theirs: nn.TransformerEncoder) -> None:
    """Gives torch's encoder our weights, under its names."""
    have, want = ours.state_dict(), {}
    for i, kind in ((i, kind) for i in range(len(theirs.layers)) for kind in ("weight", "bias")):
        at, to = f"layers.{i}.", f"layers.{i}."
        want[f"{to}self_attn.in_proj_{kind}"] = torch.cat([have[f"{at}attention.{part}.{kind}"] for part in "qkv"])
        names = {
            "self_attn.out_proj": "attention.out", "linear1": "feedforward.up", "linear2": "feedforward.down",
            "norm1": "attention_norm", "norm2": "feedforward_norm",
        }  # fmt: skip
        want |= {f"{to}{new}.{kind}": have[f"{at}{old}.{kind}"] for new, old in names.items()}
        want[f"norm.{kind}"] = have[f"norm.{kind}"]
    theirs.load_state_dict(want)


def page(results: Sequence[Result]) -> Iterator[str]:
    """The two tables, and the losses."""
    ran = [result for result in results if not result.unsupported]
    tables: dict[str, tuple[str, Callable[[Result, str], str]]] = {
        "runtime": ("s", lambda result, name: f"{STEPS * (result.times[name].seconds or 0.0):.3g}"),
        "memory use": ("MiB", lambda result, name: f"{result.peaks[name] / 2**20:.4g}"),
    }
    for title, (unit, cell) in tables.items():
        yield from ("", f"## Transformer training, {STEPS} steps: {title}", "")
        yield f"| Units: {unit} | {' | '.join(result.name for result in ran)} |"
        yield "|---|" + "---|" * len(ran)
        for name in (OURS, TORCH):
            yield f"| {name} | {' | '.join(cell(r, name) if name in r.peaks else '–' for r in ran)} |"
    yield from ("", "Memory is what a step holds at its worst beyond weights, their moments and its result.", "")
    yield from (f"- {result.name}, {name}: {text}" for result in ran for name, text in result.told.items())
