"""Products of which each process has a piece of the sequence on one side, and a piece of the features on the other."""

from collections.abc import Sequence

from torch import Tensor

from .differentiable_collectives import Group, gather_from_sequence_parallel_region, scatter_to_sequence_parallel_region


def sequence_parallel_leading_matmul(
    x: Tensor, ws: Sequence[Tensor], *, fuse: bool, process_group: Group
) -> list[Tensor]:
    """The processes' x, one behind the other, times each of this process's weights.

    Args:
        x: ``[M, ..., E]``, this process's piece of the sequence.
        ws: ``[E, F]`` each.
        fuse: changes nothing; what is gathered is multiplied when all of it is there.
        process_group: the processes, in their order along the sequence.

    Returns:
        For each weight ``[processes · M, ..., F]``.

    Example:
        >>> import torch
        >>> alone = torch.distributed.ProcessGroup(0, 1)
        >>> x, ws = torch.ones(2, 3, 4), [torch.ones(4, 5), torch.ones(4, 6)]
        >>> [y.shape for y in sequence_parallel_leading_matmul(x, ws, fuse=True, process_group=alone)]
        [torch.Size([2, 3, 5]), torch.Size([2, 3, 6])]
    """
    gathered = gather_from_sequence_parallel_region(x, process_group)
    return [gathered @ w for w in ws]


def sequence_parallel_trailing_matmul(x: Tensor, w: Tensor, *, fuse: bool, process_group: Group) -> Tensor:
    """This process's piece of the sequence of x times w, summed over the processes.

    Args:
        x: ``[processes · M, ..., F]``, this process's piece of the features.
        w: ``[F, E]``.
        fuse: changes nothing: the product is shared out when all of it is there.
        process_group: the processes, in their order along the sequence.

    Returns:
        ``[M, ..., E]``.

    Raises:
        AssertionError: a sequence that the processes cannot share out evenly.

    Example:
        >>> import torch
        >>> alone = torch.distributed.ProcessGroup(0, 1)
        >>> sequence_parallel_trailing_matmul(torch.ones(2, 4), torch.ones(4, 5), fuse=True, process_group=alone).shape
        torch.Size([2, 5])
    """
    return scatter_to_sequence_parallel_region(x @ w, process_group)
