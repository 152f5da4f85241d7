"""One attention on one task: trained, tested, and resumed where it was left."""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import xfn
from benchmarks import machine
from benchmarks.lra.model import config, model
from benchmarks.lra.settings import Settings
from benchmarks.lra.tasks import Batch, batch
from xfn import random

STATE, SUMMARY = "checkpoint.pt", "test_eval_summary.json"
Say = Callable[[str], None]


def run(
    settings: Settings,
    folder: Path,
    *,
    device: str = "cpu",
    every: float = 60.0,
    stop: int | None = None,
    say: Say = print,
) -> dict[str, Any] | None:
    """Train from where the folder was left, then test.

    Args:
        folder: of this run alone; a checkpoint and the summary are written there.
        every: seconds from a checkpoint to the next; one more is written at the end.
        stop: leave off at this step, without a test.

    Returns:
        The summary, or None where training was left off.

    Raises:
        ValueError: the folder holds a run of other settings.
    """
    done = finished(settings, folder)
    if done:
        say(f"{folder} is finished")
        return done
    initial = random.key(settings.seed, device=device)
    net = xfn.nn.Module(model(settings), key=random.fold_in(initial, 0))
    state = Training(settings, net, random.fold_in(initial, 1))
    state.load(folder / STATE)
    count = sum(p.numel() for p in net.parameters())
    cost = xfn.factory.summary(config(settings)).total.flops / 1e9
    say(f"{settings.task}, {settings.attention}: {count} parameters, {cost:.3g} GFlops of the encoder per sequence")
    saved = state.seconds
    with tqdm(total=settings.steps, initial=state.step, disable=None, leave=False) as bar:
        while state.step < (settings.steps if stop is None else min(stop, settings.steps)):
            loss = state.advance()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()
            if state.seconds - saved > every:
                state.save(folder / STATE)
                saved = state.seconds
    state.save(folder / STATE)
    if state.step < settings.steps:
        return None
    accuracy, loss = tested(settings, net.eval(), random.fold_in(initial, 2))
    about = {name: fact for name, fact in machine.describe().items() if name != "xfn"}
    summary = {
        "task": settings.task, "attention": settings.attention, "test_accu_mean": accuracy, "test_loss_mean": loss,
        "train_step_idx": state.step, "train_loss": state.loss, "num_parameter": count, "gflops": cost,
        "seconds": state.seconds, "settings": asdict(settings), "machine": about,
    }  # fmt: skip
    written(folder / SUMMARY, lambda path: path.write_text(json.dumps(summary, indent=1) + "\n"))
    return summary


def finished(settings: Settings, folder: Path) -> dict[str, Any] | None:
    if not (folder / SUMMARY).exists():
        return None
    summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
    check(settings, summary["settings"], folder)
    return summary


def check(settings: Settings, other: dict[str, Any], folder: Path) -> None:
    """Raise where what a folder holds was not made with these settings."""
    mine = json.loads(json.dumps(asdict(settings)))
    different = sorted(name for name in mine if mine[name] != other.get(name))
    if different:
        name = different[0]
        raise ValueError(
            f"{folder} holds a run of {name}={other.get(name)!r}, but this one has {mine[name]!r}: "
            "write --directory with another"
        )


class Training:
    """What training changes: the module, the optimiser, its schedule, and the step."""

    def __init__(self, settings: Settings, net: nn.Module, key: Tensor) -> None:
        self.settings, self.net, self.key = settings, net, key
        self.step, self.loss, self.began = 0, float("nan"), time.monotonic()
        self.optimiser = torch.optim.AdamW(net.parameters(), lr=settings.rate, eps=1e-6, weight_decay=0.0)
        warmup = max(2, settings.warmup)  # fewer are no way up, as the schedule counts
        steps = max(settings.steps, warmup + 1)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, settings.rate, steps, pct_start=warmup / steps, anneal_strategy="linear"
        )

    @property
    def seconds(self) -> float:
        """That it has taken, before it was left off, too."""
        return time.monotonic() - self.began

    def advance(self) -> float:
        """One update; batches and what is dropped follow from the step alone."""
        s = self.settings
        self.net.train()
        self.optimiser.zero_grad()
        total = 0.0
        for i in range(s.accumulate):
            drawn, dropped = random.split(random.fold_in(random.fold_in(self.key, self.step), i))
            given = batch(s.task, s, drawn.cpu(), s.batch).to(self.key.device)
            logits, aux = self.net(given.ids, given.lengths, key=dropped)
            loss = (cross_entropy(logits, given.labels) + sum(aux.values())) / s.accumulate
            loss.backward()
            total += loss.item()
        self.optimiser.step()
        self.schedule.step()
        self.step, self.loss = self.step + 1, total
        return total

    def save(self, path: Path) -> None:
        state = {
            "step": self.step, "loss": self.loss, "seconds": self.seconds,
            "settings": asdict(self.settings), "net": self.net.state_dict(), "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
        }  # fmt: skip
        written(path, lambda path: torch.save(state, path))

    def load(self, path: Path) -> None:
        if not path.exists():
            return
        state = torch.load(path, map_location=self.key.device)
        check(self.settings, json.loads(json.dumps(state["settings"])), path.parent)
        self.step, self.loss, self.began = state["step"], state["loss"], time.monotonic() - state["seconds"]
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])


def tested(settings: Settings, net: nn.Module, key: Tensor) -> tuple[float, float]:
    """The mean accuracy and loss over the examples of the test."""
    right, loss, count = 0, 0.0, 0
    with torch.no_grad():
        for given in examples(settings, key):
            logits, _ = net(given.ids, given.lengths)
            right += int((logits.argmax(-1) == given.labels).sum())
            loss += cross_entropy(logits, given.labels, reduction="sum").item()
            count += len(given.labels)
    return right / count, loss / count


def examples(settings: Settings, key: Tensor) -> Iterator[Batch]:
    """Those of the test, in batches."""
    for i, first in enumerate(range(0, settings.tests, settings.batch)):
        B = min(settings.batch, settings.tests - first)
        yield batch(settings.task, settings, random.fold_in(key, i).cpu(), B, test=True).to(key.device)


def written(path: Path, write: Callable[[Path], Any]) -> None:
    """A file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    write(part)
    os.replace(part, path)
