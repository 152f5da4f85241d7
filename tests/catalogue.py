"""What the laws of parts range over: every part of every folder, with each of its fields changed, and calls of it that
the names of its arguments allow."""

import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as tree

import xfn.parts
from xfn import bias, random
from xfn._core.dims import Dims
from xfn.parts import catalogue, honours

FOLDERS = [m.name for m in pkgutil.iter_modules(xfn.parts.__path__) if m.ispkg]
DIMS = Dims(model=8, heads=2, length=12, vocab=7)
GRID = (3, 4)
M = 12
N = 7
"""Of a context."""

CANDIDATES = {int: (3, 4, 5, 8), float: (0.5, 2.0)}
"""What numbers are changed to: the first that the part takes."""


def kinds() -> list[type[Any]]:
    """The parts of all folders."""
    return [kind for folder in FOLDERS for kind in catalogue(folder).values()]


def variants(kind: type[Any]) -> Iterator[Any]:
    """A part as it comes, with each field changed that has other values, and with all that are fractions."""
    yield kind()
    for name, hint in get_type_hints(kind).items():
        for values in changes(hint, getattr(kind(), name)):
            yield from _first(kind, ({name: value} for value in values))
    halves = {n: 0.5 for n, hint in get_type_hints(kind).items() if hint is float and 0 <= getattr(kind(), n) <= 1}
    if len(halves) > 1:
        yield from _first(kind, [halves])


def changes(hint: Any, now: Any) -> list[tuple[Any, ...]]:
    """Lists of values; of each list, one is taken."""
    if hint is bool:
        return [(not now,)]
    if get_origin(hint) is Literal:
        return [(value,) for value in get_args(hint) if value != now]
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    numbers = [kind for kind in CANDIDATES if kind in kinds]
    return [tuple(value for value in CANDIDATES[kind] if value != now) for kind in numbers]


def _first(kind: type[Any], changes: Any) -> Iterator[Any]:
    """The first of several changes that makes a part, for the model of the laws."""
    for change in changes:
        try:
            part = replace(kind(), **change)
            part.init(random.key(0), DIMS)
        except ValueError:
            continue
        yield part
        return


@dataclass(frozen=True)
class Subject:
    """A part and a way to call it: ``plain``, ``causal``, ``padded``, or ``across`` to another sequence."""

    folder: str
    part: Any
    way: str = "plain"

    def __str__(self) -> str:
        usual = type(self.part)()
        changed = [
            f"{f.name}={getattr(self.part, f.name)}"
            for f in fields(self.part)
            if getattr(self.part, f.name) != getattr(usual, f.name)
        ]
        return "-".join([self.folder, type(self.part).__name__, *changed, *[self.way] * (self.way != "plain")])

    __repr__ = __str__

    @property
    def takes(self) -> frozenset[str]:
        return honours(self.part)

    @property
    def draws(self) -> bool:
        """Whether it drops anything in training."""
        return getattr(self.part, "p", 0.0) > 0

    def init(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
        return tree.tree_map(lambda t: t.to(dtype), self.part.init(random.key(seed), DIMS))

    def draw(self, *batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        """Data by the names of arguments: every tensor has the batch, and what is the same for all is in no leaf."""
        generator = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*batch, *shape, generator=generator, dtype=torch.float64).to(dtype)
        keys = N if self.way == "across" else M
        kept = torch.rand(*batch, keys, generator=generator) < 0.6
        kept[..., 1] = True
        data: dict[str, Any] = {name: normal(M, DIMS.heads, DIMS.head) for name in "qkv" if name in self.takes}
        if "x" in self.takes:
            data["x"] = normal(M, DIMS.model)
        if "tokens" in self.takes:
            data["tokens"] = torch.randint(7, (*batch, M), generator=generator)
        if self.way == "across":
            data["context"] = normal(N, DIMS.model)
        if "kept" in self.takes and self.way == "padded":
            data["kept"] = kept
        if "bias" in self.takes:
            hidden = bias.dense(kept[..., None, None, :])
            data["bias"] = {"causal": bias.causal(), "padded": hidden}.get(self.way, bias.Bias(()))
        return data

    def __call__(self, params: Any, data: dict[str, Any], key: Tensor | None = None) -> Any:
        options: dict[str, Any] = {}
        if "grid" in self.takes:
            options["grid"] = GRID
        if "causal" in self.takes:
            options["causal"] = self.way == "causal"
        if "key" in self.takes and key is not None:
            options["key"] = key
        return self.part.apply(params, **data, **options)


def every_part(law: Any) -> Any:
    """Parametrise a law over the parts of all folders."""
    return pytest.mark.parametrize("subject", [s for s in _subjects() if s.way == "plain"], ids=str)(law)


def every_call(keep: Callable[[Subject], bool] = lambda subject: True) -> Callable[[Any], Any]:
    """Parametrise a law over the calls of parts; one that is put around a function has laws of its own."""
    return pytest.mark.parametrize("subject", [s for s in _subjects() if "f" not in s.takes and keep(s)], ids=str)


@cache
def _subjects() -> tuple[Subject, ...]:
    found: dict[str, Subject] = {}
    for folder in FOLDERS:
        for kind in catalogue(folder).values():
            for part in variants(kind):
                for subject in _ways(folder, part):
                    found.setdefault(str(subject), subject)
    return tuple(found.values())


def _ways(folder: str, part: Any) -> Iterator[Subject]:
    takes = honours(part)
    yield Subject(folder, part)
    if takes & {"bias", "causal"}:
        yield Subject(folder, part, "causal")
    if takes & {"bias", "kept"}:
        yield Subject(folder, part, "padded")
    if "context" in takes:
        yield Subject(folder, part, "across")


# Data, cut up.

LENGTH = {"q": -3, "k": -3, "v": -3, "x": -2, "tokens": -1}
"""Where the length of what is data stands, from the end."""


def at(data: Any, i: int) -> Any:
    """Example i."""
    return tree.tree_map(lambda t: t[i], data)


def stack(examples: list[Any]) -> Any:
    return tree.tree_map(lambda *each: torch.stack(each), *examples)


def floating(data: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What can be differentiated, and the rest."""
    floats = {n: t for n, t in data.items() if isinstance(t, Tensor) and t.is_floating_point()}
    return floats, {n: t for n, t in data.items() if n not in floats}


def loss(y: Any) -> Tensor:
    """A scalar of everything that came out."""
    return torch.stack([(i + 1.0) * (t.sin() + t.square() / 3).sum() for i, t in enumerate(tree.tree_leaves(y))]).sum()
