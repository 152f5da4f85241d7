"""A case: one call of an op at one size. Laws, kernel tests and benchmarks all read the same ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from .pytree import mapped

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Case:
    """``call(*tensors, backend=…)`` on tensors whose shapes are given in letters, as ``"B M H K"``.

    A case says what it is by its tags: ``tiny`` ones bear Hessians, ``long`` ones are for benchmarks.
    """

    name: str
    call: Callable[..., Any]
    shapes: Mapping[str, str]
    sizes: Mapping[str, int]
    tags: frozenset[str] = field(default=frozenset())

    def shape(self, operand: str) -> tuple[int, ...]:
        return tuple(int(d) if d.isdigit() else self.sizes[d] for d in self.shapes[operand].split())

    def __str__(self) -> str:
        return self.name


def beside(tree: T, q: Tensor) -> T:
    """What a case makes on the CPU, on the device of q."""
    return tree if tree is None or q.device.type == "cpu" else mapped(lambda t: t.to(q.device), tree)
