"""Linear layers of which each process has a piece: of what comes out, or of what goes in."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .differentiable_collectives import Group, copy_to_model_parallel_region, reduce_from_model_parallel_region
from .seqpar import sequence_parallel_leading_matmul, sequence_parallel_trailing_matmul

Init = Callable[[Tensor], Any]


class ColumnParallelLinear(nn.Module):
    """Several layers from one input, each process with its piece of each one's features: ``weights``, no bias.

    With ``sequence_parallel`` the input is this process's piece of the sequence, along the first dim.
    """

    def __init__(
        self,
        in_features: int,
        out_features: list[int],
        *,
        process_group: Group,
        bias: bool = True,
        gather_output: bool = True,
        init_method: Init = nn.init.xavier_normal_,
        sequence_parallel: bool = False,
        fuse_sequence_parallel: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(out_features, list):
            raise TypeError(f"out_features={out_features!r} must be a list, one number for each layer")
        _without(bias=bias, gather_output=gather_output)
        self.in_features, self.global_out_features = in_features, out_features
        self.sequence_parallel, self.fuse_sequence_parallel = sequence_parallel, fuse_sequence_parallel
        self.process_group = process_group
        self.my_out_features = [_piece(features, process_group) for features in out_features]
        pieces = [torch.empty(features, in_features) for features in self.my_out_features]
        self.weights = nn.ParameterList([_initialised(w, init_method, process_group, 0) for w in pieces])

    def forward(self, input_: Tensor) -> list[Tensor]:
        ws, group = [w.t() for w in self.weights], self.process_group
        if self.sequence_parallel:
            return sequence_parallel_leading_matmul(input_, ws, fuse=self.fuse_sequence_parallel, process_group=group)
        x = copy_to_model_parallel_region(input_, group)
        return [x @ w for w in ws]


class RowParallelLinear(nn.Module):
    """A layer whose input's features the processes share out, each with its columns of ``weight``, no bias.

    With ``sequence_parallel`` the output is this process's piece of the sequence, along the first dim.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        process_group: Group,
        bias: bool = True,
        input_is_parallel: bool = False,
        init_method: Init = nn.init.xavier_normal_,
        sequence_parallel: bool = False,
        fuse_sequence_parallel: bool = True,
    ) -> None:
        super().__init__()
        _without(bias=bias)
        if not input_is_parallel:
            raise ValueError("input_is_parallel=False is not to be had: write input_is_parallel=True")
        self.global_in_features, self.out_features = in_features, out_features
        self.sequence_parallel, self.fuse_sequence_parallel = sequence_parallel, fuse_sequence_parallel
        self.process_group = process_group
        self.my_in_features = _piece(in_features, process_group)
        self.weight = _initialised(torch.empty(out_features, self.my_in_features), init_method, process_group, 1)

    def forward(self, input_: Tensor) -> Tensor:
        w, group = self.weight.t(), self.process_group
        if self.sequence_parallel:
            return sequence_parallel_trailing_matmul(input_, w, fuse=self.fuse_sequence_parallel, process_group=group)
        return reduce_from_model_parallel_region(input_ @ w, group)


def _without(**wanted: bool) -> None:
    for name, value in wanted.items():
        if value:
            raise ValueError(f"{name}=True is not to be had: write {name}=False")


def _piece(features: int, group: Group) -> int:
    if features % group.size():
        raise AssertionError(f"{group.size()} processes cannot share {features} features out evenly")
    return features // group.size()


def _initialised(weight: Tensor, init_method: Init, group: Group, dim: int) -> nn.Parameter:
    """Every so many rows, or columns, of the whole layer's weight, which all processes draw alike."""
    sides = list(weight.shape)
    sides[dim] *= group.size()
    whole = weight.new_empty(sides)
    init_method(whole)
    mine = torch.arange(group.rank(), sides[dim], group.size(), device=weight.device)
    return nn.Parameter(whole.detach().index_select(dim, mine))
