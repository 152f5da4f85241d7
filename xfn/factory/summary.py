"""What a model takes, layer by layer: parameters, operations, and what waits for the backward pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .. import random
from .._core.params import leaves, tree
from ..bias import Bias
from .build import structure
from .config import Config, Encoder, Stage
from .stack import Both, Stack


class Row(NamedTuple):
    """One step of a model, for one example.

    Attributes:
        name: ``input``, a layer or ``output``, by its path.
        parameters: how many numbers it has learned.
        flops: multiplications and additions of its forward pass, of products and convolutions; masked ones count.
        activations: bytes that it keeps for the backward pass, in training.
    """

    name: str
    parameters: int
    flops: int
    activations: int


class Summary(NamedTuple):
    """The rows of a table; ``str`` of it is the table."""

    rows: tuple[Row, ...]

    @property
    def total(self) -> Row:
        """The sums."""
        counts = zip(*(row[1:] for row in self.rows), strict=True)
        return Row("total", *map(sum, counts))

    def __str__(self) -> str:
        head = ("", "parameters", "FLOPs", "activations")
        lines = [head, *((r.name, f"{r.parameters:,}", _short(r.flops, 1000, ("", "k", "M", "G", "T")),
                          _short(r.activations, 1024, (" B", " KiB", " MiB", " GiB", " TiB")))
                         for r in (*self.rows, self.total))]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [f"{line[0]:<{widths[0]}}  " + "  ".join(map(str.rjust, line[1:], widths[1:])) for line in lines]
        return "\n".join(row.rstrip() for row in table)


def summary(config: Config, length: int | None = None, image: tuple[int, int] | None = None) -> Summary:
    """Print what a config's model takes for one example, layer by layer.

    Args:
        config, length, image: as of :func:`costs`.

    Returns:
        :class:`Summary`, as :func:`costs` does, which prints nothing.

    Raises:
        ValueError: the length, or the size of the image, is not known.

    Example:
        >>> import xfn
        >>> total = summary(xfn.Encoder(xfn.Dims(model=32, heads=4, length=64, vocab=100), layers=2)).total
                  parameters    FLOPs  activations
        input          5,248        0          0 B
        layers.0      12,704    2.10M   129.00 KiB
        layers.1      12,704    2.10M   129.00 KiB
        output         3,264  409.60k    16.00 KiB
        total         33,920    4.60M   274.00 KiB
        >>> total.parameters
        33920
    """
    found = costs(config, length, image)
    print(found)
    return found


def costs(config: Config, length: int | None = None, image: tuple[int, int] | None = None) -> Summary:
    """What a config's model takes for one example.

    The model runs once without numbers, on torch's meta device; or on the CPU, where a part looks at numbers.

    Args:
        config: as of :func:`xfn.build`.
        length: M, of the source and of the target; by default ``Dims.length`` of each.
        image: height and width, of what has patches.

    Returns:
        :class:`Summary`.

    Raises:
        ValueError: the length, or the size of the image, is not known.

    Example:
        >>> import xfn
        >>> costs(xfn.Encoder(xfn.Dims(model=32, heads=4, length=64, vocab=100), layers=2)).total.parameters
        33920
    """
    made = structure(config)
    inputs = [
        _shape(stack, length, image) for stack in ((made.encoder, made.decoder) if isinstance(made, Both) else (made,))
    ]
    try:
        return _rows(made, inputs, "meta")
    except RuntimeError:  # of numbers that are not there
        return _rows(made, inputs, "cpu")


def _rows(made: Stack | Both, inputs: list[tuple[tuple[int, ...], torch.dtype]], device: str) -> Summary:
    from torch.utils.flop_counter import FlopCounterMode

    count_ours()
    key = random.key(0, device=device)
    flat = {name: t.detach().requires_grad_(t.is_floating_point()) for name, t in leaves(made.init(key)).items()}
    params, xs = tree(flat), [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in inputs]
    known = {StorageWeakRef(t.untyped_storage()) for t in (*flat.values(), *xs)}
    rows: list[Row] = []

    @contextmanager
    def watch(name: str) -> Iterator[None]:
        kept = 0

        def pack(t: Tensor) -> Tensor:
            nonlocal kept
            storage = t.untyped_storage()
            if (reference := StorageWeakRef(storage)) not in known:
                known.add(reference)
                held.append(t)
                kept += storage.nbytes()
            return t

        with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            yield
        rows.append(Row(name, _count(flat, name), counter.get_total_flops(), kept))

    held: list[Tensor] = []  # so that no storage takes another's place
    if isinstance(made, Both):
        made.run(params, xs[0], xs[1], Bias(()), Bias(()), {}, key, watch)
    else:
        made.run(params, xs[0], Bias(()), {}, key, watch=watch)
    return Summary(tuple(rows))


def _count(flat: dict[str, Tensor], name: str) -> int:
    """Parameters of a step: of a layer, what is under its path; of the rest, what is under that of no layer."""
    place, _, step = name.rpartition(".") if name.endswith(("input", "output")) else (name, "", "")
    ends = ("norm", "logits")
    total = 0
    for path, t in flat.items():
        if step:
            if path.startswith(f"{place}." if place else ""):
                first = path.removeprefix(f"{place}.").split(".")[0]
                total += t.numel() * (first in ends if step == "output" else first not in (*ends, "layers", "stages"))
        else:
            total += t.numel() * path.startswith(f"{name}.")
    return total


def _shape(stack: Stack, length: int | None, image: tuple[int, int] | None) -> tuple[tuple[int, ...], torch.dtype]:
    """Of one example of what comes in."""
    first: Stage = stack.stages[0].config
    if isinstance(first, Encoder) and first.patch:
        if image is None:
            raise ValueError("a model of images needs their size: write summary(config, image=(height, width))")
        return (first.patch.channels or 0, *image), torch.float32
    found = length or first.dims.length
    if found is None:
        raise ValueError("a model without Dims.length needs one: write summary(config, length=…)")
    return ((found,), torch.int64) if first.dims.vocab else ((found, first.dims.model), torch.float32)


def _short(number: float, step: int, units: Sequence[str]) -> str:
    """In the largest unit of which there is one."""
    power = 0
    while number >= step and power + 1 < len(units):
        number, power = number / step, power + 1
    return f"{number:.{2 * (power > 0)}f}{units[power]}"


@cache
def count_ours() -> None:
    """Tell torch's FlopCounterMode what attention costs: 2 (K + V) operations for each query, head and key."""
    from torch.utils.flop_counter import register_flop_formula

    def dense(q: Tensor, k: Tensor, v: Tensor, *rest: Any, out_val: Any = None) -> int:
        return 2 * q.shape[:-1].numel() * k.shape[-3] * (q.shape[-1] + v.shape[-1])

    def tiled(q: Tensor, k: Tensor, v: Tensor, *rest: Any, out_val: Any = None) -> int:
        counts, block = rest[9], int(rest[-2])
        each: int = int(counts.sum()) * (q.shape[:-1].numel() // q.shape[-3]) // (counts.numel() // counts.shape[-1])
        return 2 * each * block**2 * (q.shape[-1] + v.shape[-1])

    def sparse(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, columns: Tensor, *rest: Any, out_val: Any = None) -> int:
        return 2 * q.shape[:-3].numel() * q.shape[-2] * columns.shape[-1] * (q.shape[-1] + v.shape[-1])

    for op, formula in (("attention", dense), ("blocksparse", tiled), ("sparse_attention", sparse)):
        register_flop_formula(getattr(torch.ops.xfn, f"{op}_forward"), get_raw=True)(formula)
