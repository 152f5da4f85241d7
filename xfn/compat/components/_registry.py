"""Classes by name, and configs that may say more than a class takes."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, make_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._drawn import dropping


class RegistryItem(NamedTuple):
    """A class, and the dataclass of what its configs may say."""

    constructor: Any
    config: Any


Registry = dict[str, RegistryItem]


def registering(registry: Registry, base: type, config_base: type) -> Callable[..., Callable[[type], type]]:
    """A decorator that registers subclasses of ``base``, with configs that are subclasses of ``config_base``."""

    def register(name: str, config: type | None = None) -> Callable[[type], type]:
        def decorate(cls: type) -> type:
            if name in registry:
                raise ValueError(f"{name!r} is registered already, for {registry[name].constructor.__name__}")
            if not issubclass(cls, base):
                raise ValueError(f"{cls.__name__} must be a subclass of {base.__name__}")
            if config is not None and not issubclass(config, config_base):
                raise ValueError(f"{config.__name__} must be a subclass of {config_base.__name__}")
            registry[name] = RegistryItem(cls, _widened(cls, config or config_base))
            return cls

        return decorate

    return register


def _widened(cls: type, config: Any) -> Any:
    """A config with a field for every argument of a class."""
    known = {f.name for f in fields(config)}
    new: list[tuple[str, Any, Any]] = [(name, Any, None) for name in arguments(cls) if name not in known]
    return make_dataclass(f"{cls.__name__}Config", new, bases=(config,)) if new else config


def arguments(cls: type) -> list[str]:
    """What the constructor of a class names."""
    every = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
    return [p.name for p in every if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def looked_up(registry: Registry, what: str, name: Any) -> RegistryItem:
    if name is None:
        raise KeyError(f"a config of {what} says which: write {{'name': ...}}, one of {sorted(registry)}")
    if name not in registry:
        raise KeyError(f"no {what} is called {name!r}; there are {sorted(registry)}")
    return registry[name]


def generate_matching_config(superset: Mapping[str, Any], config: Any) -> tuple[Any, list[str]]:
    """A config of those items that it has fields for, None where there is none; and the names of the others."""
    names = [f.name for f in fields(config)]
    left = [name for name, value in superset.items() if name not in names and value is not None]
    return config(**{name: superset.get(name) for name in names}), left


def built(item: RegistryItem, config: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """What a config makes, and what of it was of no use."""
    made, left = generate_matching_config(config, item.config)
    return item.constructor.from_config(made), left


def given(config: Any, cls: type) -> dict[str, Any]:
    """What of a config is not None, as arguments of a class that may take any."""
    says = {f.name: getattr(config, f.name) for f in fields(config)}
    named = [p.kind for p in inspect.signature(cls.__init__).parameters.values()]  # type: ignore[misc]
    known = None if inspect.Parameter.VAR_KEYWORD in named and not hasattr(cls, "_strict") else arguments(cls)
    return {n: v for n, v in says.items() if v is not None and (known is None or n in known)}


def ignored(of: str, names: Iterable[str]) -> None:
    """Say in one warning what is of no use."""
    if names := sorted(set(names) - {"name"}):
        warnings.warn(f"{of} takes no {', '.join(names)}: ignored", stacklevel=3)


class Strict:
    """A mark of classes whose constructors warn of what they do not know, and are not given it from configs."""

    _strict = True


def drawn(module: torch.nn.Module, p: float, device: torch.device) -> Tensor | None:
    """A key from torch's generator, where a module is in training and drops."""
    return dropping(p if module.training else 0.0, device)
