"""Hyper-parameters as values: what JSON gives back is what was given to it, and names are looked up with care."""

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor

from .._core.dims import Dims
from .._core.kinds import check_number


class Numbers(dict[str, Any]):
    """Numbers by name. They have a hash, and nobody writes to them."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def settle(part: object, name: str) -> None:
    """Turn the lists in a field of a frozen dataclass into tuples, and its dicts into :class:`Numbers`."""
    object.__setattr__(part, name, frozen(getattr(part, name)))


def frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Numbers({name: frozen(v) for name, v in value.items()})
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


class Drops:
    """A part all of whose draws are what it drops."""

    p: float

    @property
    def draws(self) -> bool:
        """Whether it uses the key of a call."""
        return self.p > 0


def drawing(p: float, key: Tensor | None) -> tuple[float, Tensor | None]:
    """What drops with p in training, which has a key, and what it draws with; else nothing."""
    return (p, key) if p and key is not None else (0.0, None)


Names = tuple[str, ...]


def check_named(module: ModuleType, first: Names, name: str, numbers: Mapping[str, Any], given: Names) -> None:
    """``name`` is a function of ``module`` whose first argument is one of ``first``, and ``numbers`` are all that it
    takes besides what is ``given``."""
    what = module.__name__.rpartition(".")[2].removesuffix("s")
    if name not in (names := functions(module, first)):
        raise ValueError(f"no {what} is called {name!r}; there are {', '.join(names)}")
    takes = {n: p for n, p in inspect.signature(getattr(module, name)).parameters.items() if n not in given}
    if wrong := [n for n in numbers if n not in takes]:
        raise TypeError(f"{what}.{name} has no {wrong}; it has {list(takes)}")
    if absent := [n for n, p in takes.items() if p.default is p.empty and n not in numbers]:
        raise TypeError(f"{what}.{name} needs numbers={{{', '.join(f'{n!r}: …' for n in absent)}}}")


def functions(module: ModuleType, first: Names) -> list[str]:
    """The public functions of a module whose first argument is called so."""
    found = {n: f for n, f in vars(module).items() if inspect.isfunction(f) and not n.startswith("_")}
    return [n for n, f in found.items() if next(iter(inspect.signature(f).parameters), "") in first]


def call_named(module: ModuleType, name: str, numbers: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """That function of ``numbers``, and of what it takes of what is ``given``."""
    f = getattr(module, name)
    return f(**{n: v for n, v in given.items() if n in inspect.signature(f).parameters}, **numbers)


def hidden(dims: Dims, multiplier: float | None) -> int | None:
    """F: by a part's own multiplier, else as the model has it, else None, which leaves it to the function."""
    return dims.hidden if multiplier is None else round(multiplier * dims.model)


def check_multiplier(multiplier: float | None) -> None:
    if multiplier is not None and check_number("multiplier", multiplier) <= 0:
        raise ValueError(f"multiplier={multiplier} leaves no width: it must be positive, or None")
