"""Fields hold what their annotations say, or an error says what they must be."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .kinds import is_integer


def check_fields(value: Any) -> None:
    """Raise where a field of a dataclass is not of its kind."""
    kind: Any = type(value)
    hints = _hints(kind)
    for field in fields(value):
        got, hint = getattr(value, field.name), hints.get(field.name, Any)
        if not _fits(got, hint):
            raise TypeError(f"{kind.__name__}.{field.name} is {got!r}, but must be {_spelled(hint)}")


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    try:
        return get_type_hints(kind)
    except NameError:  # of a class within a function
        return {}


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is Literal:
        return type(value) in map(type, inner)  # which of them there are, a part says itself
    if kind is tuple:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if kind is Sequence:
        return isinstance(value, list | tuple) and all(_fits(v, inner[0]) for v in value)
    if kind is Mapping:
        return isinstance(value, Mapping)
    if hint is int:
        return is_integer(value)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
    return isinstance(value, hint) if hint in (bool, str, NoneType) or is_dataclass(hint) else True


def _spelled(hint: Any) -> str:
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(map(_spelled, inner))
    if kind is Literal:
        return " or ".join(map(repr, inner))
    if kind is tuple:
        return f"a pair ({', '.join(map(_spelled, inner))})"
    if kind is Sequence:
        return "a list" if inner[0] is Any else f"a list, each of it {_spelled(inner[0])}"
    plain = {bool: "True or False", int: "an integer", float: "a number", str: "a name", NoneType: "None"}
    return plain.get(hint, "a dict" if kind is Mapping else getattr(hint, "__name__", str(hint)))
