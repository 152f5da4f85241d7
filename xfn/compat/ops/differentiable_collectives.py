"""What processes tell each other, as linear functions along the first dim, each with its transpose as its derivative.

copy      x                      transpose: sum        where parallel weights begin
sum       Σ over processes x     transpose: copy       where they end
gather    [x₀; x₁; …]            transpose: scatter    where pieces of a sequence become one
scatter   piece of Σ x           transpose: gather     where it is shared out again
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch import distributed as dist

from ..._core.kernel import Args, Grads, Outs, RawOp, named_group

Group = dist.ProcessGroup


@dataclass
class Collective:
    """An op: what it does, what its first dim becomes, and the name of its transpose."""

    name: str
    run: Callable[[Tensor, Tensor, Group], Any]
    rows: Callable[[int, int], int]
    transpose: str
    schema: str = "(Tensor x, str group) -> Tensor"

    def compute(self, x: Tensor, group: str) -> Grads:
        out = self.fake(x, group)
        self.run(out[0], x.contiguous(), named_group(group))
        return out

    def fake(self, x: Tensor, group: str) -> Outs:
        return (x.new_empty(self.rows(x.shape[0], named_group(group).size()), *x.shape[1:]),)

    def vmap(self, size: int, in_dims: Sequence[int | None], x: Tensor, group: str) -> tuple[Outs, tuple[int, ...]]:
        assert in_dims[0] is not None
        return OPS[self.name](x.movedim(in_dims[0], 1), group), (1,)

    def vjp(self, args: Args, outs: Outs, cotangents: Grads, needs: Sequence[bool]) -> Grads:
        return *OPS[self.transpose](cotangents[0], args[1]), None

    def jvp(self, args: Args, outs: Outs, tangents: Grads) -> Grads:
        return OPS[self.name](tangents[0], args[1])

    def both(self, args: Args, tangents: Grads) -> None:
        """There is no such op."""

    def composite(self, *args: Any) -> None:
        """There is a rule."""


def _copy(out: Tensor, x: Tensor, group: Group) -> None:
    out.copy_(x)


def _sum(out: Tensor, x: Tensor, group: Group) -> None:
    dist.all_reduce(out.copy_(x), group=group)


def _gather(out: Tensor, x: Tensor, group: Group) -> None:
    getattr(dist, "all_gather_single", dist.all_gather_into_tensor)(out, x, group=group)


def _scatter(out: Tensor, x: Tensor, group: Group) -> None:
    getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)(out, x, group=group)


OPS = {
    of.name: RawOp(of)
    for of in (
        Collective("collective_copy", _copy, lambda rows, size: rows, "collective_sum"),
        Collective("collective_sum", _sum, lambda rows, size: rows, "collective_copy"),
        Collective("collective_gather", _gather, lambda rows, size: rows * size, "collective_scatter"),
        Collective("collective_scatter", _scatter, lambda rows, size: rows // size, "collective_gather"),
    )
}


def copy_to_model_parallel_region(x: Tensor, process_group: Group | None) -> Tensor:
    """x; its gradient is summed over the processes."""
    return _called("collective_copy", x, process_group)


def reduce_from_model_parallel_region(x: Tensor, process_group: Group | None) -> Tensor:
    """x summed over the processes; its gradient is that of the sum."""
    return _called("collective_sum", x, process_group)


def gather_from_sequence_parallel_region(x: Tensor, process_group: Group | None) -> Tensor:
    """The processes' x, one behind the other along the first dim."""
    return _called("collective_gather", x, process_group)


def scatter_to_sequence_parallel_region(x: Tensor, process_group: Group | None) -> Tensor:
    """This process's piece, along the first dim, of x summed over the processes."""
    if process_group is not None and x.shape[0] % process_group.size():
        raise AssertionError(f"{process_group.size()} processes cannot share {x.shape[0]} rows out evenly")
    return _called("collective_scatter", x, process_group)


def _called(name: str, x: Tensor, group: Group | None) -> Tensor:
    """No group, and one of one process, leave x as it is."""
    if group is None or group.size() == 1:
        return x
    (out,) = OPS[name](x, group.group_name)
    return out
