"""The vocabulary of models: a part is a file with one frozen dataclass, and its folder is the registry.

A part's fields are its hyper-parameters. It has ``init(key, dims) -> params`` and ``apply``, the names of whose
arguments say what it can honour. Of an attention or a feed-forward:

    q k v       it attends within heads [..., M, H, K], which are projected for it
    x           it takes [..., M, E] as it is
    context     of those that take x: it can look at another sequence
    bias        it honours a Bias, and so causality, key padding and any mask
    causal      it can be causal, and takes no other mask
    kept        it honours key padding [..., N], True where a key is one
    grid        it sees an image of (height, width)
    key         it draws: without a key it is in evaluation. Where its attribute ``draws`` is False, it draws nothing

Where an attribute ``mixes`` is True, what one query is given is made of all of them, and so of those to come.

Of a position:

    tokens      it embeds tokens [..., M], by the table [W, E] that its parameters call "word"
    x           it adds to [..., M, E], and may put tokens before
    q k         it turns [..., M, H, K] and [..., N, G, K], within the heads that attend to their own sequence

Of a residual, whose own parameters are those of a norm:

    params x f  {"f": …, "norm": …}, the stream, and the layer that is called as f(params["f"], x)
    alpha       it scales the stream by DeepNet's α, and weights are drawn with β

which may also have ``branch(params, x, f)``, what is added to a stream that passes by, as in a reversible stack, and
``last(params, x)``, a norm behind the last layer.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from types import MappingProxyType, ModuleType
from typing import Any


def catalogue(package: ModuleType | str) -> Mapping[str, type[Any]]:
    """The parts of a folder by their names in JSON, which are their classes' in snake case.

    Args:
        package: a package, or its name; one of ``attention feedforward position residual`` is a folder here.

    Returns:
        A mapping from names to classes; it follows from what the folder holds, and from nothing else.

    Raises:
        ValueError: two parts have one name.
    """
    name = package if isinstance(package, str) else package.__name__
    return _found(name if "." in name else f"{__name__}.{name}")


@cache
def _found(name: str) -> Mapping[str, type[Any]]:
    found: dict[str, type[Any]] = {}
    for file in sorted(pkgutil.iter_modules(importlib.import_module(name).__path__), key=lambda m: m.name):
        module = importlib.import_module(f"{name}.{file.name}")
        for value in vars(module).values():
            if not (isinstance(value, type) and is_dataclass(value) and value.__module__ == module.__name__):
                continue
            if hasattr(value, "init") and hasattr(value, "apply"):
                called = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", value.__name__).lower().rstrip("_")
                if called in found:
                    raise ValueError(f"two parts of {name} are called {called!r}: {found[called]} and {value}")
                found[called] = value
    return MappingProxyType(found)


def honours(part: object) -> frozenset[str]:
    """The names of what a part's ``apply`` takes."""
    return frozenset(inspect.signature(part.apply).parameters)  # type: ignore[attr-defined]


def draws(part: object) -> bool:
    """Whether a part uses the key of a call."""
    return "key" in honours(part) and bool(getattr(part, "draws", True))


def mixes(part: object) -> bool:
    """Whether what a part gives to one query is made of all of them."""
    return bool(getattr(part, "mixes", False))
