"""The softmax over the rows of a sparse matrix.

    out[e] = exp(values[e]) / Σ exp(values[f])        over the entries f of the row that holds e

Kept in float32, or float64 where that came in; out is in the dtype of values. A row whose values are all −∞ gives
zeros.

Source: Gale, Zaharia, Young and Elsen, "Sparse GPU kernels for deep learning" (SC 2020).
"""

import torch
from torch import Tensor

from .._core.case import Case, beside
from .._core.csr import lines_of
from .._core.kinds import check_kinds, check_tensors, wide
from .._core.primitive import Primitive
from .._core.shapes import Signature
from ..sparsity import Csr
from .sddmm import pattern, sized

SIGNATURE = Signature.parse("values H Z; row_ends H|1 M, columns H|1 Z -> out H Z")


def sparse_softmax(csr: Csr, values: Tensor, *, backend: str | None = None) -> Tensor:
    """The softmax over the entries of each row of a pattern.

    Args:
        csr: a :class:`xfn.sparsity.Csr` with Z entries.
        values: ``[..., H, Z]``, one number an entry, numbered by row.
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"gather"``; by default the first that can.

    Returns:
        ``[..., H, Z]`` in the dtype of values; zero behind the entries of a pattern that has fewer than another.

    Raises:
        ShapeError: shapes contradict each other.
        TypeError, ValueError: values that do not float, or are elsewhere.

    Example:
        >>> csr = Csr.from_mask(torch.tensor([[True, True], [False, True]]))
        >>> sparse_softmax(csr, torch.zeros(1, 3))
        tensor([[0.5000, 0.5000, 1.0000]])
    """
    tables = Csr.of(csr).tables
    check_tensors({"values": values})
    check_kinds({"values": values}, {"csr": tables.columns})
    SIGNATURE.check({"values": values} | tables._asdict(), tables.called)
    return SPARSE_SOFTMAX.bind(values, tables.row_ends, tables.columns, backend=backend)[0]


def reference(values: Tensor, row_ends: Tensor, columns: Tensor) -> tuple[Tensor]:
    """The specification, in plain torch."""
    with torch.autocast(values.device.type, enabled=False):
        given, M = values.dtype, row_ends.shape[-1]
        s, m = torch.broadcast_tensors(values.to(wide(given)), lines_of(row_ends, columns.shape[-1]))
        empty = s.new_zeros(*s.shape[:-1], M + 1)
        top = (empty - torch.inf).scatter_reduce(-1, m, s.detach(), "amax")
        top = torch.where(top == -torch.inf, 0, top)
        weights = torch.where(m < M, (s - top.gather(-1, m)).exp(), 0)
        total = empty.scatter_add(-1, m, weights)
        return ((weights / torch.where(total == 0, 1, total).gather(-1, m)).to(given),)


SPARSE_SOFTMAX = Primitive("sparse_softmax", SIGNATURE, reference, backends=("cpu", "cuda", "gather"))


def _case(name: str, mask: str = "M N", batch: str = "B", density: float = 0.4, tags: str = "", **sizes: int) -> Case:
    whole = sized(density, {"B": 2, "M": 5, "N": 4, "H": 2}, sizes)

    def call(values: Tensor, backend: str | None = None) -> tuple[Tensor]:
        return (sparse_softmax(beside(pattern(whole, mask), values), values, backend=backend),)

    return Case(name, call, {"values": f"{batch} H Z"}, whole, frozenset(tags.split()))


CASES = (
    _case("shared"),
    _case("example", batch="", tags="tiny", M=3, N=3),
    _case("per head", mask="H M N", H=4),
    _case("per example", mask="B H M N", tags="tiny", M=2, N=3),
    _case("two batches", mask="C H M N", batch="B C", C=3),
    _case("all", density=1.0),
    _case("nothing", density=0.0, tags="empty"),
    _case("odd", M=19, N=23),
    _case("no queries", M=0, tags="empty"),
    _case("no examples", B=0, tags="empty"),
)
