"""Frozen dataclasses that torch.func can see into.

Which fields are leaves is declared per field and never read off the value: vmap rebuilds a tree that
holds its in_dims, plain ints, where the tensors were. A tensor field that is ``None`` leaves the tree,
because vmap and grad refuse ``None`` leaves.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, dataclass_transform

from torch.utils import _pytree

T = TypeVar("T")


def static(**options: Any) -> Any:
    """A field that is part of the tree's structure: a number, a string, a tuple of them."""
    return field(metadata={"static": True}, **options)


def mapped(f: Callable[[Any], Any], tree: T) -> T:
    """The tree with ``f`` of each leaf."""
    made: T = _pytree.tree_map(f, tree)
    return made


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """The leaves of a tree, and its structure."""
    return _pytree.tree_flatten(tree)


def unflatten(leaves: Iterable[Any], structure: Any) -> Any:
    """The tree that has these leaves."""
    return _pytree.tree_unflatten(leaves, structure)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(static,))
def pytree(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen dataclass whose fields, but for the static ones, are subtrees."""
    made = dataclass(frozen=True, eq=False)(cls)
    statics = tuple(f.name for f in fields(made) if f.metadata.get("static"))  # type: ignore[arg-type]
    dynamic = tuple(f.name for f in fields(made) if not f.metadata.get("static"))  # type: ignore[arg-type]

    def flatten_with_keys(value: Any) -> tuple[list[Any], Any]:
        present = tuple(name for name in dynamic if getattr(value, name) is not None)
        children = [(_pytree.GetAttrKey(name), getattr(value, name)) for name in present]
        return children, (present, tuple(getattr(value, name) for name in statics))

    def flatten(value: Any) -> tuple[list[Any], Any]:
        children, context = flatten_with_keys(value)
        return [child for _, child in children], context

    def unflatten(children: Any, context: Any) -> Any:
        present, held = context
        absent = dict.fromkeys(dynamic)
        return made(**absent | dict(zip(present, children, strict=True)) | dict(zip(statics, held, strict=True)))

    _pytree.register_pytree_node(made, flatten, unflatten, flatten_with_keys_fn=flatten_with_keys)
    return made
