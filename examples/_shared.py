"""What the examples share: options, what they promise, packages that may be absent, digits, and two training loops.

B batch        C classes        E model width
"""

import argparse
import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map
from tqdm import tqdm

import xfn
from xfn import plot, random

Params = Any
Options = argparse.Namespace


@dataclass(frozen=True)
class Promise:
    """A number that a full run prints last, and the bar that it is to meet."""

    what: str
    bar: float
    least: bool = True
    form: str = ".1%"

    def __str__(self) -> str:
        return f"{self.what}, promised: at {'least' if self.least else 'most'} {self.bar:{self.form}}"

    def show(self, found: float, quick: bool) -> float:
        kept = found >= self.bar if self.least else found <= self.bar
        verdict = "of a full run" if quick else "kept" if kept else "MISSED"
        print(f"{self}, found: {found:{self.form}} ({verdict})")
        return found


def options(
    about: str | None, arguments: Sequence[str] | None, picture: bool = True, **more: dict[str, Any]
) -> Options:
    """What the command line says; ``more`` has what an example alone understands."""
    parser = argparse.ArgumentParser(description=(about or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few steps and tiny sizes, in some seconds")
    parser.add_argument("--seed", type=int, default=0, help="the key that all is drawn with")
    if picture:
        parser.add_argument("--plot", type=Path, help="where a picture goes, such as picture.svg")
    for name, settings in more.items():
        parser.add_argument(f"--{name}", **settings)

    # Steps this small gain little from a third thread.
    torch.set_num_threads(min(2, torch.get_num_threads()))
    return parser.parse_args(arguments)


def borrowed(module: str, package: str) -> Any:
    """A module of a package that xfn itself does not need."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise SystemExit(f"this example needs {package}, which is not there: pip install xfn[examples]") from error


def progress(steps: Iterable[Any], what: str) -> Any:
    return tqdm(steps, what, leave=False, ncols=79, disable=None)


def drawing(width: float, height: float, columns: int = 1) -> tuple[Any, list[Any]]:
    """A matplotlib figure, and its panels side by side."""
    figure = borrowed("matplotlib.figure", "matplotlib").Figure(figsize=(width, height), layout="constrained")
    panels = list(figure.subplots(1, columns, squeeze=False)[0])
    for panel in panels:
        panel.tick_params(labelsize=7)
    return figure, panels


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    plot.save(figure, path)
    print(f"picture   {path}")


# Functions of parameters, and how they learn.


def count(params: Params) -> int:
    return sum(leaf.numel() for leaf in tree_leaves(params))


def one_cycle(step: int, steps: int) -> float:
    """A factor of the learning rate: up within a tenth of all steps, then down to 0 along a cosine."""
    rise = max(1, steps // 10)
    return (step + 1) / rise if step < rise else 0.5 + 0.5 * math.cos(math.pi * (step - rise) / (steps - rise))


Memory = tuple[Params, Params, Tensor]


def adam(params: Params) -> Memory:
    """What Adam remembers: means of slopes and of their squares, and how often."""
    return tree_map(torch.zeros_like, params), tree_map(torch.zeros_like, params), torch.zeros(())


def adam_step(params: Params, slopes: Params, memory: Memory, rate: float) -> tuple[Params, Memory]:
    """The next parameters, and the next memory: nothing is written to, so that it may be mapped."""
    b1, b2 = 0.9, 0.99
    first, second, times = memory[0], memory[1], memory[2] + 1
    first = tree_map(lambda m, g: b1 * m + (1 - b1) * g, first, slopes)
    second = tree_map(lambda m, g: b2 * m + (1 - b2) * g.square(), second, slopes)

    def moved(w: Tensor, m: Tensor, s: Tensor) -> Tensor:
        return w - rate * (m / (1 - b1**times)) / ((s / (1 - b2**times)).sqrt() + 1e-8)

    return tree_map(moved, params, first, second), (first, second, times)


# Digits, which come with scikit-learn: 1797 images of 8 × 8.


@dataclass(frozen=True)
class Digits:
    """Images ``[B, 1, 8, 8]`` in [0, 1] and what they show, to learn from and to be asked."""

    x: Tensor
    y: Tensor
    asked: Tensor
    answers: Tensor


def digits(key: Tensor) -> Digits:
    found = borrowed("sklearn.datasets", "scikit-learn").load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    order = random.permutation(key, len(x))
    x, y = x[order], torch.tensor(found.target)[order]
    return Digits(x[360:], y[360:], x[:360], y[:360])


def shifted(x: Tensor, key: Tensor) -> Tensor:
    """Images, each moved by at most a pixel."""
    moves = random.randint(key, (2, len(x), 1), 0, 3) + torch.arange(8)
    each = torch.arange(len(x))[:, None, None]
    return F.pad(x, (1, 1, 1, 1))[each, 0, moves[0, :, :, None], moves[1, :, None]][:, None]


def classifier(config: Any, width: int, C: int = 10) -> xfn.factory.Model:
    """A pair of functions: what ``config`` builds, the mean of its tokens, and a linear map to logits."""
    body = xfn.build(config)

    def init(key: Tensor) -> Params:
        first, second = random.split(key)
        return {"body": body.init(first), "head": xfn.init_linear(second, width, C)}

    def apply(params: Params, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        return xfn.linear(params["head"], body.apply(params["body"], x, key=key)[0].mean(-2))

    return xfn.factory.Model(init, apply)


def learn(net: torch.nn.Module, data: Digits, key: Tensor, steps: int, rate: float = 3e-3, batch: int = 128) -> float:
    """Trains a module on digits; the part of the others that it then reads right."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step, steps))
    bar = progress(range(steps), "training")
    for step in bar:
        pick, move = random.split(random.fold_in(key, step))
        rows = random.randint(pick, (batch,), 0, len(data.x))
        loss = F.cross_entropy(net(shifted(data.x[rows], move)), data.y[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix_str(f"loss {loss:.2f}", refresh=False)
    return right(net.eval(), data)


@torch.no_grad()
def right(net: Callable[[Tensor], Tensor], data: Digits) -> float:
    return (net(data.asked).argmax(-1) == data.answers).float().mean().item()
