"""A tensor as its slices, and slices as the tensor that they were, without a copy."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._core.levels import plain, records


def unbind(x: Tensor, dim: int) -> tuple[Tensor, ...]:
    """The slices of x along a dim, as ``torch.unbind`` has them.

    Args:
        x: any tensor.
        dim: along which.

    Example:
        >>> unbind(torch.arange(4).reshape(2, 2), 1)
        (tensor([0, 2]), tensor([1, 3]))
    """
    return torch.unbind(x, dim)


def get_stack_strides(tensors: Sequence[Tensor], dim: int) -> tuple[int, ...] | None:
    """The strides with which these tensors are one already, stacked along a dim; None if they are not.

    Args:
        tensors: of one shape.
        dim: of the stack.

    Example:
        >>> get_stack_strides(torch.zeros(3, 4).unbind(0), 1)
        (1, 4)
        >>> get_stack_strides([torch.zeros(4), torch.zeros(4)], 1)
    """
    first = tensors[0]
    where = dim % (first.dim() + 1)
    if any(t.shape != first.shape or t.stride() != first.stride() or t.dtype != first.dtype for t in tensors):
        return None
    if len({t.untyped_storage().data_ptr() for t in tensors}) > 1 or len({t.device for t in tensors}) > 1:
        return None
    offsets = [int(t.storage_offset()) for t in tensors]
    step = offsets[1] - offsets[0] if len(offsets) > 1 else first.numel()
    if step < 0 or offsets != [offsets[0] + i * step for i in range(len(offsets))]:
        return None
    strides = list(first.stride())
    return (*strides[:where], step, *strides[where:])


def stack_or_none(tensors: Sequence[Tensor], dim: int) -> Tensor | None:
    """The stack of these tensors where they are one already, and None where it would have to be made.

    It is a view; but where a gradient is recorded, or a transform is on, it is made, that each gets its gradient.

    Args:
        tensors: of one shape.
        dim: of the stack.

    Example:
        >>> x = torch.zeros(3, 4)
        >>> stack_or_none(x.unbind(0), 0).data_ptr() == x.data_ptr()
        True
    """
    if not plain(tuple(tensors)):
        return torch.stack(list(tensors), dim)
    strides = get_stack_strides(tensors, dim)
    if strides is None:
        return None
    if records(tuple(tensors)):
        return torch.stack(list(tensors), dim)
    shape = list(tensors[0].shape)
    shape.insert(dim % (len(shape) + 1), len(tensors))
    return tensors[0].as_strided(shape, strides)
