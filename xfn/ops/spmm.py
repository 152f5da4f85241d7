"""The product of a sparse matrix and values: "sparse matrix times dense matrix".

    out[m] = Σ values[e] v[n]        over the entries e = (m, n) of row m

Sums are kept in float32, or float64 where that came in; out is in the dtype of values. What is no entry touches
nothing, whatever it holds.

Source: Gale, Zaharia, Young and Elsen, "Sparse GPU kernels for deep learning" (SC 2020).
"""

import torch
from torch import Tensor

from .._core.case import Case, beside
from .._core.csr import LETTERS, lines_of, take
from .._core.kinds import autocast, check_kinds, check_tensors, wide
from .._core.primitive import Primitive
from .._core.shapes import Signature, check_groups
from ..sparsity import Csr
from .sddmm import pattern, sized

SIGNATURE = Signature.parse(f"values H Z, v N G V; {LETTERS} -> out M H V")


def spmm(csr: Csr, values: Tensor, v: Tensor, *, backend: str | None = None) -> Tensor:
    """Mix the rows of v, weighted by one number for each entry of a pattern.

    Args:
        csr: a :class:`xfn.sparsity.Csr` of M queries and N keys, with Z entries.
        values: ``[..., H, Z]``, one number an entry, numbered by row; what is behind the entries does not count.
        v: ``[..., N, G, V]``; query head h reads key head h // (H // G).
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"gather"``; by default the first that can.

    Returns:
        ``[..., M, H, V]`` in the dtype of values; zero for a row without entries.

    Raises:
        ShapeError: shapes contradict each other.
        TypeError, ValueError: dtypes or devices differ.

    Example:
        >>> csr = Csr.from_mask(torch.tensor([[True, True], [False, False]]))
        >>> spmm(csr, torch.tensor([[10.0, 1.0]]), torch.tensor([[[1.0]], [[2.0]]])).flatten()
        tensor([12., 0.])
    """
    tables = Csr.of(csr).tables
    check_tensors({"values": values, "v": v})
    values, v = autocast(values, v)
    check_kinds({"values": values, "v": v}, {"csr": tables.columns})
    sizes, _ = SIGNATURE.check({"values": values, "v": v} | tables._asdict(), tables.called)
    check_groups(sizes, "values")
    return SPMM.bind(values, v, *tables, backend=backend)[0]


def reference(
    values: Tensor, v: Tensor, row_ends: Tensor, columns: Tensor, column_ends: Tensor, rows: Tensor, order: Tensor
) -> tuple[Tensor]:
    """The specification, in plain torch: every entry's share, added to its row; O(Z V) memory."""
    with torch.autocast(v.device.type, enabled=False):
        given, dtype, M = values.dtype, wide(values.dtype), row_ends.shape[-1]
        m = lines_of(row_ends, columns.shape[-1]).unsqueeze(-1)
        far = take(v, columns, values.shape[-2]).to(dtype)
        share = torch.where(m < M, values.unsqueeze(-1).to(dtype), 0) * torch.where(m < M, far, 0)
        empty = share.new_zeros(*share.shape[:-2], M + 1, share.shape[-1])
        out = empty.scatter_add(-2, m.expand(share.shape), share)[..., :M, :]
        return (out.movedim(-3, -2).to(given),)


SPMM = Primitive("spmm", SIGNATURE, reference, backends=("cpu", "cuda", "gather"))


def _case(name: str, mask: str = "M N", batch: str = "B", density: float = 0.4, tags: str = "", **sizes: int) -> Case:
    whole = sized(density, {"B": 2, "M": 5, "N": 4, "H": 2, "G": 2, "V": 3}, sizes)

    def call(values: Tensor, v: Tensor, backend: str | None = None) -> tuple[Tensor]:
        return (spmm(beside(pattern(whole, mask), v), values, v, backend=backend),)

    shapes = {"values": f"{batch} H Z", "v": f"{batch} N G V"}
    return Case(name, call, shapes, whole, frozenset(tags.split()))


CASES = (
    _case("shared"),
    _case("example", batch="", tags="tiny", M=3, N=3, V=2),
    _case("per head", mask="H M N", H=4),
    _case("per example", mask="B H M N", tags="tiny", M=2, N=3, V=2),
    _case("two batches", mask="C H M N", batch="B C", C=3),
    _case("grouped", H=6),
    _case("all", density=1.0),
    _case("nothing", density=0.0, tags="empty"),
    _case("odd", M=19, N=23, V=17),
    _case("no queries", M=0, tags="empty"),
    _case("no examples", B=0, tags="empty"),
)
