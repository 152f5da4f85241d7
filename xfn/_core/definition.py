"""What a raw op is made of."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

Args = Sequence[Any]
Outs = tuple[Tensor, ...]
Grads = Sequence[Tensor | None]


def bits(needs: Sequence[bool]) -> int:
    """Which gradients are needed, as one number."""
    return sum([1 << i for i, need in enumerate(needs) if need])


class Definition(Protocol):
    """What an op is made of. In the rules ``None`` is an absent argument, or a derivative that is zero."""

    name: str
    schema: str

    def compute(self, *args: Any) -> Grads:
        """The outputs; None where one is a gradient that nobody needs."""
        ...

    def fake(self, *args: Any) -> Outs: ...

    def vmap(self, size: int, in_dims: Sequence[int | None], *args: Any) -> tuple[Outs, tuple[int | None, ...]]: ...

    def vjp(self, args: Args, outs: Outs, cotangents: Grads, needs: Sequence[bool]) -> Grads: ...

    def jvp(self, args: Args, outs: Outs, tangents: Grads) -> Grads: ...

    def both(self, args: Args, tangents: Grads) -> tuple[Outs, Grads] | None:
        """The outputs and their tangents at once, by an op that gives both; None: there is none."""
        ...

    def composite(self, *args: Any) -> Grads | None:
        """The op in plain torch, to be differentiated instead of it in forward mode; None: there is a rule."""
