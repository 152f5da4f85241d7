"""Shapes are written once, in letters, and read four times: to check, to explain, to vmap and to fake.

    q M H K, k N G K, v N G V, dense? H|1 M|1 N|1 ; lo? M, key? 2 -> out M H V, lse+ H M

Before the semicolon stand the operands that are differentiated, after it the constants, behind the arrow
the outputs. ``?`` may be absent, ``H|1`` may broadcast, ``2`` is itself, ``+`` stays in the dtype that sums
are kept in. Everything left of the letters is batch, of any rank, and batches broadcast.

    M query length      H query heads                         K features of q and k, per head
    N key length        G key heads, H a multiple of G        V features of v, per head
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .errors import ShapeError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Operand:
    """One tensor of a signature: its name and its trailing dims, in letters."""

    name: str
    dims: tuple[str, ...]
    optional: bool = False
    wide: bool = False

    @staticmethod
    def parse(text: str) -> "Operand":
        name, *dims = text.split()
        return Operand(name.rstrip("?+"), tuple(dims), "?" in name, "+" in name)

    @property
    def rank(self) -> int:
        return len(self.dims)

    def batch(self, tensor: Tensor) -> Shape:
        return tuple(tensor.shape[: tensor.dim() - self.rank])

    def spelled(self, called: str) -> str:
        return f"{called} [{', '.join(('...', *(d.removesuffix('|1') for d in self.dims)))}]"


@dataclass(frozen=True, eq=False)  # one object each: to be looked up by, it need not be read
class Signature:
    """What an op takes and gives, in letters."""

    operands: tuple[Operand, ...]
    constants: tuple[Operand, ...]
    outputs: tuple[Operand, ...]

    @staticmethod
    def parse(text: str) -> "Signature":
        inputs, outputs = text.split("->")
        operands, _, constants = inputs.partition(";")
        groups = [[Operand.parse(o) for o in part.split(",") if o.strip()] for part in (operands, constants, outputs)]
        return Signature(*map(tuple, groups))

    @property
    def inputs(self) -> tuple[Operand, ...]:
        return self.operands + self.constants

    def check(
        self, tensors: Mapping[str, Tensor | None], called: Mapping[str, str] = {}
    ) -> tuple[dict[str, int], Shape]:
        """Name every dim and find the batch, or raise a ShapeError; returns ``({"M": 5, …}, batch)``."""
        sizes: dict[str, int] = {}
        owner: dict[str, str] = {}
        batch: Shape = ()
        batchers: list[str] = []
        for operand in self.inputs:
            tensor = tensors.get(operand.name)
            if tensor is None:
                continue
            name = called.get(operand.name, operand.name)
            if tensor.dim() < operand.rank:
                raise ShapeError(
                    f"{operand.spelled(name)} needs at least {operand.rank} dims, but its shape is {list(tensor.shape)}"
                )
            for letter, size in zip(operand.dims, tensor.shape[tensor.dim() - operand.rank :], strict=True):
                letter, broadcasts = letter.removesuffix("|1"), letter.endswith("|1")
                if broadcasts and size == 1:
                    continue
                wanted = int(letter) if letter.isdigit() else sizes.setdefault(letter, size)
                if size != wanted:
                    than = f"{owner[letter]} has {letter}={wanted}" if letter in owner else f"it must be {wanted}"
                    either = " (1 would broadcast)" if broadcasts else ""
                    raise ShapeError(f"{operand.spelled(name)} has {letter}={size}, but {than}{either}")
                owner.setdefault(letter, name)
            own = operand.batch(tensor)
            if own and not broadcastable(own, batch):
                raise ShapeError(
                    f"{operand.spelled(name)} has batch {list(own)}, which does not broadcast "
                    f"with the batch {list(batch)} of {' and '.join(batchers)}"
                )
            if own:
                batch, batchers = broadcast((batch, own)), [*batchers, name]
        return sizes, batch

    def sizes(self, tensors: Iterable[Tensor | None]) -> dict[str, int]:
        """The size of every letter, from tensors that were checked before and begin with the inputs."""
        return {
            letter: size
            for operand, tensor in zip(self.inputs, tensors, strict=False)
            if tensor is not None
            for letter, size in zip(operand.dims, tensor.shape[tensor.dim() - operand.rank :], strict=True)
            if "|" not in letter
        }


def check_groups(sizes: Mapping[str, int], name: str) -> None:
    """Query heads share key heads evenly."""
    if not sizes["G"] or sizes["H"] % sizes["G"]:
        raise ShapeError(f"{name} has H={sizes['H']} heads, which G={sizes['G']} key heads cannot share evenly")


def broadcastable(a: Sequence[int], b: Sequence[int]) -> bool:
    return all(m == n or m == 1 or n == 1 for m, n in zip(reversed(a), reversed(b), strict=False))


def broadcast(shapes: Iterable[Shape]) -> Shape:
    """The shape that all of ``shapes`` broadcast to; equal ones, the usual case, cost next to nothing."""
    ranked = [shape for shape in shapes if shape]
    if all(shape == ranked[0] for shape in ranked):
        return tuple(ranked[0]) if ranked else ()
    if is_compiling() or any(type(n) is not int for shape in ranked for n in shape):
        return tuple(torch.broadcast_shapes(*ranked))  # which knows symbols, in fifty calls of Python
    longest = max(map(len, ranked))
    padded = [(1,) * (longest - len(shape)) + tuple(shape) for shape in ranked]
    sizes = [set(size) - {1} for size in zip(*padded, strict=True)]
    if any(len(size) > 1 for size in sizes):
        raise ShapeError(f"shapes do not broadcast: {', '.join(str(list(shape)) for shape in ranked)}")
    return tuple([size.pop() if size else 1 for size in sizes])


def whole(t: Tensor, *shapes: Shape) -> Tensor:
    """A tensor with the batch of others of its rank, too."""
    return t.expand(broadcast((tuple(t.shape), *(tuple(s) for s in shapes))))


def batch_of(operands: Sequence[Operand], tensors: Sequence[Tensor | None]) -> Shape:
    """The broadcast batch of tensors that stand for ``operands``."""
    return broadcast(o.batch(t) for o, t in zip(operands, tensors, strict=True) if t is not None)
