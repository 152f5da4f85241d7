"""Configs as JSON has them: dicts, lists, strings and numbers. What is unknown is an error that says what there is."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from .._core.dims import Dims
from ..parts import catalogue
from .config import Config, Decoder, Encoder, Patch, Simplicial, Transformer

FOLDERS = {name: name for name in ("attention", "feedforward", "position", "residual")} | {"cross": "attention"}
VALUES = {"dims": Dims, "patch": Patch, "simplicial": Simplicial}
CONFIGS = {"encoder": Encoder, "decoder": Decoder, "transformer": Transformer}
PLAIN = (bool, int, float, str)


def from_dict(data: Mapping[str, Any] | Sequence[Any]) -> Config:
    """The config that JSON describes.

    Args:
        data: the fields of a config. Parts are dicts of their fields and a ``name``, which is their class's in snake
            case; a config has one too, ``"encoder"``, ``"decoder"`` or ``"transformer"``, and is an encoder without,
            or, where it has an encoder, a transformer. A list is one of stages.

    Returns:
        An :class:`xfn.Encoder`, :class:`xfn.Decoder`, :class:`xfn.Transformer`, or a list of stages.

    Raises:
        KeyError: a name that no part or config has.
        TypeError: a field that a part or config has not, or the lack of one that it needs.

    Example:
        >>> from_dict({"dims": {"model": 32, "heads": 4}, "attention": {"name": "dot_product", "p": 0.1}}).attention
        DotProduct(p=0.1, scale=None)
        >>> from_dict({"dims": {"model": 32}, "layer": 2})
        Traceback (most recent call last):
        TypeError: encoder has no ['layer']; it has ['dims', 'layers', 'attention', ...
    """
    if isinstance(data, Sequence) and not isinstance(data, str):
        return [_config(stage, "") for stage in data]
    return _config(data, "")  # type: ignore[no-any-return]


def to_dict(config: Config) -> Any:
    """What :func:`from_dict` reads: ``from_dict(to_dict(config)) == config``, through JSON too.

    Args:
        config: as of :func:`xfn.build`.

    Returns:
        A dict, or a list of them. What is None is left out.

    Raises:
        TypeError: a part that is not in the package, or a value that JSON cannot hold.

    Example:
        >>> to_dict(Encoder(Dims(model=32)))["attention"]
        {'name': 'dot_product', 'p': 0.0}
    """
    if isinstance(config, list | tuple):
        return [to_dict(stage) for stage in config]
    if not isinstance(config, Encoder | Decoder | Transformer):
        raise TypeError(f"a config is an Encoder, a Decoder, a Transformer, or a list of stages, but got {config!r}")
    name = type(config).__name__.lower()
    given: dict[str, Any] = {"name": name}
    for field in fields(config):
        value = getattr(config, field.name)
        if value is not None:
            given[field.name] = _written(field.name, value)
    return given


def _written(name: str, value: Any) -> Any:
    """A field of a config."""
    if name in FOLDERS:
        return _part(name, value)
    if name in VALUES:
        return _fields(value)
    if name in CONFIGS:
        return to_dict(value)
    return value


def _part(name: str, part: Any) -> dict[str, Any]:
    names = {kind: called for called, kind in catalogue(FOLDERS[name]).items()}
    if type(part) not in names:
        raise TypeError(f"{type(part).__name__} is not in xfn.parts.{FOLDERS[name]}, so it has no name in JSON")
    return {"name": names[type(part)], **_fields(part)}


def _fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, less those that are None."""
    of = type(value).__name__
    return {f.name: _plain(f"{of}.{f.name}", got) for f in fields(value) if (got := getattr(value, f.name)) is not None}


def _plain(name: str, value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(n): _plain(f"{name}[{n!r}]", v) for n, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{name}[{i}]", v) for i, v in enumerate(value)]
    if value is not None and not isinstance(value, PLAIN):
        raise TypeError(f"{name} is {value!r}, which JSON cannot hold")
    return value


def _config(data: Any, wanted: str) -> Any:
    """A config of the kind that is wanted, or of that which data names."""
    _check_mapping(wanted or "a config", data)
    name = data.get("name", wanted or ("transformer" if {"encoder", "decoder"} & set(data) else "encoder"))
    if not isinstance(name, str) or name not in CONFIGS or name != (wanted or name):
        raise KeyError(f"no config is called {name!r}; there are {[wanted] if wanted else sorted(CONFIGS)}")
    given = {n: _read(n, v) for n, v in data.items() if n != "name"}
    return _made(name, CONFIGS[name], given)


def _read(name: str, value: Any) -> Any:
    """A field of a config, from JSON."""
    if value is None:
        return None
    if name in FOLDERS:
        return _named(name, value)
    if name in VALUES:
        _check_mapping(name, value)
        return _made(name, VALUES[name], {n: _frozen(v) for n, v in value.items()})
    if name in ("encoder", "decoder"):
        return (
            tuple(_config(stage, name) for stage in value) if isinstance(value, list | tuple) else _config(value, name)
        )
    return value


def _named(field: str, data: Any) -> Any:
    """A part of a folder."""
    known = catalogue(FOLDERS[field])
    _check_mapping(field, data)
    if "name" not in data:
        raise TypeError(f"{field} needs a name, one of {sorted(known)}")
    if not isinstance(name := data["name"], str) or name not in known:
        raise KeyError(f"no part is called {name!r}; there are {sorted(known)}")
    return _made(name, known[name], {n: _frozen(v) for n, v in data.items() if n != "name"})


def _made(name: str, kind: type[Any], given: Mapping[str, Any]) -> Any:
    has = {f.name: f for f in fields(kind) if f.init}
    if unknown := [n for n in given if n not in has]:
        raise TypeError(f"{name} has no {unknown}; it has {list(has)}")
    needs = [n for n, f in has.items() if f.default is MISSING and f.default_factory is MISSING and n not in given]
    if needs:
        raise TypeError(f"{name} needs {needs}")
    return kind(**given)


def _frozen(value: Any) -> Any:
    """Lists as tuples, as a frozen dataclass has them."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _check_mapping(name: str, data: Any) -> None:
    if not isinstance(data, Mapping):
        raise TypeError(f"{name} is {data!r}, but must be a dict")
