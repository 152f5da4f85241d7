"""``python -m benchmarks.front``: the two tables of README, measured anew in one run and written where they stand.

Who can be differentiated and mapped how, with one attention after the other: those that are installed are run, the
others are cited. And how fast attention is, beside the fastest of torch's own.
"""

import argparse
import importlib
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, func

import xfn
from benchmarks import machine, report
from benchmarks.attention.problem import Settings
from benchmarks.contest import Row
from benchmarks.run import measured
from examples import _compare
from xfn import bias, random

README = Path(__file__).parent.parent / "README.md"
HEADS, WIDTH, LENGTH, BATCH, MEMBERS = 2, 16, 64, 4, 3
TITLES = {
    "loss": "the loss itself",
    "gradient": "gradient",
    "per example": "per-example gradients",
    "tangent": "tangent",
    "Hessian-vector": "Hessian-vector product",
    "backward twice": "gradient penalty",
    "ensemble": "ensemble",
}
CITED = {
    "xFormers": ("https://github.com/facebookresearch/xformers/issues/768", "on CUDA"),
    "FlashAttention": ("https://github.com/Dao-AILab/flash-attention/issues/2071", "on CUDA"),
}
"""Those that run on no CPU: that every transform refuses them, and where that is said."""

SPEED = {
    "attention": (
        "forward float32 causal 2x8x2048x64",
        "forward bfloat16 dense 2x8x2048x64",
        "forward+backward float32 causal 2x8x2048x64",
        "forward+backward bfloat16 dense 2x8x2048x64",
        "jvp float32 dense 1x8x2048x64",
        "hvp float32 dense 1x8x2048x64",
        "vmap(grad) float32 dense 64 of 4x128x32",
        "bias forward+backward float32 1x8x2048x64",
        "window 256 forward+backward float32 1x2x8192x64",
        "dropout 0.1 forward float32 1x8x2048x64",
        "decode from cache bfloat16 1x8:8x512x64",
    ),
    "sparsity": ("block 64, 10% forward float32 1x8x4096x64", "block 64, 10% forward+backward float32 1x8x4096x64"),
}


def init(key: Tensor) -> dict[str, Tensor]:
    """Parameters of the smallest model that has attention in it."""
    embed, qkv = random.split(key)
    return {"embed": random.normal(embed, (WIDTH, WIDTH)), "qkv": random.normal(qkv, (WIDTH, 3 * WIDTH)) / WIDTH**0.5}


def loss(params: Any, tokens: Tensor, attend: _compare.Attend) -> Tensor:
    """How far attention leaves what it was given."""
    x = params["embed"][tokens]
    q, k, v = (x @ params["qkv"]).unflatten(-1, (3, HEADS, -1)).unbind(-3)
    found: Tensor = (attend(q, k, v).flatten(-2) - x).square().mean()
    return found


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return xfn.attention(q, k, v, bias.causal())


def states() -> Iterator[tuple[str, str, list[str]]]:
    """Of each transform its title, how it is written, and what became of it with one attention after the other."""
    keys = random.split(random.key(0), 4)
    members = func.vmap(init)(random.split(keys[2], MEMBERS))
    tokens = random.randint(keys[3], (BATCH, LENGTH), 0, WIDTH)
    point = _compare.Point(loss, init(keys[0]), init(keys[1]), members, tokens)
    for title, how, transform in _compare.ROWS:
        attends = {"xfn": causal} | _compare.PEERS
        yield TITLES[title], how, [cell.state for cell in _compare.measure(transform, point, attends, repeats=1)]


def transforms() -> Iterator[str]:
    """The first table, line by line."""
    heads = [*("xfn", *_compare.PEERS), *(f"[{name}]({url})" for name, (url, _) in CITED.items())]
    yield f"| | | {' | '.join(heads)} |"
    yield "|---" * (len(heads) + 2) + "|"
    for title, how, found in states():
        cited = [where if how == "as it is" else "✗ raises" for _, where in CITED.values()]
        yield f"| {title} | `{how.replace('|', chr(92) + '|')}` | {' | '.join([*found, *cited])} |"


def rows(quick: bool, limits: dict[str, float]) -> Iterator[Row]:
    """The rows of the second table; of a quick run, the first of each that it takes rows from."""
    for table, names in SPEED.items():
        made = importlib.import_module(f"benchmarks.{table}").rows(Settings(quick, not quick, None, limits))
        found = {row.name: row for row in made}
        if quick:
            yield next(iter(found.values()))
            continue
        if absent := [name for name in names if name not in found]:
            raise LookupError(f"benchmarks.{table} has no row {absent}; it has {', '.join(found)}")
        yield from (found[name] for name in names)


def speed(quick: bool) -> Iterator[str]:
    """The second table, line by line."""
    yield "| one thread | xfn | fastest of torch's | |"
    yield "|---|---|---|---|"
    limits = machine.matmul_limits()
    for row in rows(quick, limits):
        result = measured(row, limits, 0.2 if quick else 1.5, 2 if quick else 3, 1)
        if result.best is None or result.ratio is None:
            continue
        best = f"{report.span(result.times[result.best].seconds)}, {result.best}"
        yield f"| {row.name} | {report.span(result.times['xfn'].seconds)} | {best} | {result.ratio:.2f}× |"


def replaced(text: str, name: str, lines: Sequence[str]) -> str:
    """The text with other lines between the marks ``<!-- name -->`` and ``<!-- /name -->``."""
    marks = f"<!-- {name} -->", f"<!-- /{name} -->"
    body = "\n".join([marks[0], "", *lines, "", marks[1]])
    found, count = re.subn(f"{marks[0]}.*?{marks[1]}", lambda _: body, text, flags=re.DOTALL)
    if count != 1:
        raise LookupError(f"there is no place for {name}, or more than one: {marks[0]} … {marks[1]}")
    return found


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.front", description=__doc__.split("\n\n")[1])
    parser.add_argument("--quick", action="store_true", help="small sizes; prints, and writes nothing")
    parser.add_argument("--into", type=Path, default=README, help="the page in which the tables stand")
    asked = parser.parse_args(given)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    about = machine.describe()
    under = (
        f"{about['cpu']}, {about['capability']}; torch {about['torch']}; {about['date']}; `python -m benchmarks.front`"
    )
    tables = {"transforms": list(transforms()), "speed": [*speed(asked.quick), "", under]}
    text = asked.into.read_text(encoding="utf-8")
    for name, lines in tables.items():
        print("\n".join(lines), end="\n\n")
        text = replaced(text, name, lines)
    if not asked.quick:
        asked.into.write_text(text, encoding="utf-8")
        print(f"wrote {asked.into}")


if __name__ == "__main__":
    main()
