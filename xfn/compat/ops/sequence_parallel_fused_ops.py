"""Products of what processes gather, and of what they share out; nothing is overlapped, so a group's own rules hold."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .differentiable_collectives import Group, gather_from_sequence_parallel_region, scatter_to_sequence_parallel_region

HOUR = 60 * 60
Step = Callable[[list[Tensor], int, Callable[[], Any]], None]
Weights = Tensor | list[Tensor]


def fused_allgather_and_linear(
    scattered_input: Tensor,
    weight: Weights,
    *,
    group: Group,
    out: Weights | None = None,
    timeout_s: int = HOUR,
    scale_scattered_input: Tensor | None = None,
    scale_weight: Weights | None = None,
    out_dtype: torch.dtype | None = None,
    **private_args_DO_NOT_USE: Any,
) -> Any:
    """The processes' inputs, one behind the other, times the transpose of a weight.

    Args:
        scattered_input: ``[M, ..., E]``.
        weight: ``[F, E]``, or a list of such.
        group: the processes.
        out: ``[processes, M, ..., F]``, or a list of such, to write to.
        timeout_s, private_args_DO_NOT_USE: ignored; a warning says so.
        scale_scattered_input, scale_weight: by what numbers of eight bits are to be multiplied.
        out_dtype: the result's, if it is not the input's.

    Returns:
        ``[processes · M, ..., F]``, or a list of such.

    Raises:
        AssertionError: what does not fit.

    Example:
        >>> alone = torch.distributed.ProcessGroup(0, 1)
        >>> fused_allgather_and_linear(torch.ones(2, 3, 4), torch.ones(5, 4), group=alone).shape
        torch.Size([2, 3, 5])
    """
    _ignored("fused_allgather_and_linear", timeout_s, private_args_DO_NOT_USE)
    gathered = gather_from_sequence_parallel_region(scattered_input, group)
    found = _linears(gathered, weight, scale_scattered_input, scale_weight, out_dtype)
    whole = (group.size(), *scattered_input.shape[:-1])
    return _written(found, weight, out, lambda y: y.reshape(*whole, y.shape[-1]), lambda y: y.flatten(0, 1))


def fused_linear_and_reducescatter(
    gathered_input: Tensor,
    weight: Weights,
    *,
    group: Group,
    out: Weights | None = None,
    timeout_s: int = HOUR,
    scale_gathered_input: Tensor | None = None,
    scale_weight: Weights | None = None,
    out_dtype: torch.dtype | None = None,
    **private_args_DO_NOT_USE: Any,
) -> Any:
    """An input times the transpose of a weight, summed over the processes; of that this process's piece.

    Args:
        gathered_input: ``[processes · M, ..., F]``.
        weight: ``[E, F]``, or a list of such.
        group: the processes.
        out: ``[M, ..., E]``, or a list of such, to write to.
        timeout_s, private_args_DO_NOT_USE: ignored; a warning says so.
        scale_gathered_input, scale_weight: by what numbers of eight bits are to be multiplied.
        out_dtype: the result's, if it is not the input's.

    Returns:
        ``[M, ..., E]``, or a list of such.

    Raises:
        AssertionError: what does not fit.

    Example:
        >>> alone = torch.distributed.ProcessGroup(0, 1)
        >>> fused_linear_and_reducescatter(torch.ones(2, 4), [torch.ones(5, 4)], group=alone)[0].shape
        torch.Size([2, 5])
    """
    _ignored("fused_linear_and_reducescatter", timeout_s, private_args_DO_NOT_USE)
    products = _linears(gathered_input, weight, scale_gathered_input, scale_weight, out_dtype)
    found = [scatter_to_sequence_parallel_region(y, group) for y in products]
    return _written(found, weight, out, lambda y: y, lambda y: y)


def fused_allgather_and_anything(
    scattered_inputs: Sequence[Tensor],
    my_matmul: Step,
    *,
    group: Group,
    timeout_s: int = HOUR,
    **private_args_DO_NOT_USE: Any,
) -> None:
    """Call a function with the inputs of each process.

    Args:
        scattered_inputs: this process's; each has one shape on all of them.
        my_matmul: takes the tensors of a process, its rank, and a function to the stream to work on.
        group: the processes.
        timeout_s, private_args_DO_NOT_USE: ignored; a warning says so.

    Example:
        >>> alone = torch.distributed.ProcessGroup(0, 1)
        >>> fused_allgather_and_anything([torch.ones(2)], lambda x, rank, _: print(rank, x), group=alone)
        0 [tensor([1., 1.])]
    """
    _ignored("fused_allgather_and_anything", timeout_s, private_args_DO_NOT_USE)
    size = group.size()
    gathered = [gather_from_sequence_parallel_region(x, group).reshape(size, *x.shape) for x in scattered_inputs]
    for rank in range(size):
        my_matmul([x[rank] for x in gathered], rank, _stream)


def fused_anything_and_reducescatter(
    my_matmul: Step,
    scattered_outputs: Sequence[Tensor],
    *,
    group: Group,
    timeout_s: int = HOUR,
    **private_args_DO_NOT_USE: Any,
) -> None:
    """Call a function that writes outputs for each process, and write their sum over the processes.

    Args:
        my_matmul: takes tensors to fill, the rank of the process that they are for, and a function to the stream to
            work on.
        scattered_outputs: what this process's sums are written to.
        group: the processes.
        timeout_s, private_args_DO_NOT_USE: ignored; a warning says so.

    Example:
        >>> alone, out = torch.distributed.ProcessGroup(0, 1), torch.zeros(2)
        >>> fused_anything_and_reducescatter(lambda y, rank, _: y[0].fill_(7), [out], group=alone)
        >>> out
        tensor([7., 7.])
    """
    _ignored("fused_anything_and_reducescatter", timeout_s, private_args_DO_NOT_USE)
    size = group.size()
    gathered = [y.new_empty(size, *y.shape) for y in scattered_outputs]
    for rank in range(size):
        my_matmul([y[rank] for y in gathered], rank, _stream)
    for y, pieces in zip(scattered_outputs, gathered, strict=True):
        y.copy_(scatter_to_sequence_parallel_region(pieces, group)[0])


def _ignored(of: str, timeout_s: int, others: dict[str, Any]) -> None:
    """Say in one warning what is of no use."""
    names = [*(["timeout_s"] if timeout_s != HOUR else []), *others]
    if names:
        warnings.warn(f"{of} has no use for {', '.join(names)}: ignored", stacklevel=3)


def _stream() -> Any:
    """The stream that is on anyhow; None, which torch.cuda.stream takes too, where there is no GPU."""
    return torch.cuda.current_stream() if torch.cuda.is_available() else None


def _linears(
    x: Tensor, weight: Weights, scale_x: Tensor | None, scale: Weights | None, dtype: torch.dtype | None
) -> list[Tensor]:
    weights = weight if isinstance(weight, list) else [weight]
    _check(x.dim() >= 2 and all(w.dim() == 2 and w.shape[-1] == x.shape[-1] for w in weights), "input and weight fit")
    _check((scale_x is None) == (scale is None), "input and weight both have a scale, or neither")
    if scale_x is None or scale is None:
        return [torch.nn.functional.linear(x, w).to(dtype or x.dtype) for w in weights]
    scales: list[Tensor] = scale if isinstance(scale, list) else [scale]
    _check(isinstance(scale, list) == isinstance(weight, list) and len(scales) == len(weights), "a scale for each")
    _check(dtype is not None and all(t.element_size() == 1 for t in (x, *weights)), "eight bits, and an out_dtype")
    wide = x.float() * scale_x
    return [torch.nn.functional.linear(wide, w.float() * s).to(dtype) for w, s in zip(weights, scales, strict=True)]


def _written(
    found: list[Tensor],
    weight: Weights,
    out: Weights | None,
    shaped: Callable[[Tensor], Tensor],
    restored: Callable[[Tensor], Tensor],
) -> Any:
    """Results as they were asked for: one or a list, new or in ``out``."""
    if out is not None:
        outs = out if isinstance(out, list) else [out]
        _check(isinstance(out, list) == isinstance(weight, list) and len(outs) == len(found), "an out for each weight")
        wanted = [shaped(y) for y in found]
        fit = all(o.shape == y.shape and o.dtype == y.dtype for o, y in zip(outs, wanted, strict=True))
        _check(fit, f"out {[list(y.shape) for y in wanted]} of the result's dtype")
        found = [restored(o.copy_(y)) for o, y in zip(outs, wanted, strict=True)]
    return found if isinstance(weight, list) else found[0]


def _check(holds: bool, wanted: str) -> None:
    if not holds:
        raise AssertionError(f"wanted: {wanted}")
