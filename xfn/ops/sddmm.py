"""The product of queries and keys at the entries of a pattern ("sampled dense-dense matrix multiplication").

    values = q kᵀ        at the entries, numbered by row

Sums are kept in float32, or float64 where that came in; values are in q's dtype. What is no entry touches nothing,
whatever it holds.

Source: Gale, Zaharia, Young and Elsen, "Sparse GPU kernels for deep learning" (SC 2020).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .. import random
from .._core.case import Case, beside
from .._core.csr import LETTERS, build, lines_of, take
from .._core.kinds import autocast, check_kinds, check_tensors, wide
from .._core.primitive import Primitive
from .._core.shapes import Signature, check_groups
from ..sparsity import Csr

SIGNATURE = Signature.parse(f"q M H K, k N G K; {LETTERS} -> values H Z")


def sddmm(csr: Csr, q: Tensor, k: Tensor, *, backend: str | None = None) -> Tensor:
    """The logits q kᵀ of a pattern's entries, and no others.

    Args:
        csr: a :class:`xfn.sparsity.Csr` of M queries and N keys, with Z entries.
        q: ``[..., M, H, K]``.
        k: ``[..., N, G, K]``; query head h reads key head h // (H // G).
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"gather"``; by default the first that can.

    Returns:
        ``[..., H, Z]`` in q's dtype; zero behind the entries of a pattern that has fewer than another.

    Raises:
        ShapeError: shapes contradict each other.
        TypeError, ValueError: dtypes or devices differ.

    Example:
        >>> csr = Csr.from_mask(torch.eye(3, dtype=torch.bool))
        >>> q = torch.arange(6.0).view(3, 1, 2)
        >>> sddmm(csr, q, q)
        tensor([[ 1., 13., 41.]])
    """
    tables = Csr.of(csr).tables
    check_tensors({"q": q, "k": k})
    q, k = autocast(q, k)
    check_kinds({"q": q, "k": k}, {"csr": tables.columns})
    sizes, _ = SIGNATURE.check({"q": q, "k": k} | tables._asdict(), tables.called)
    check_groups(sizes, "q")
    return SDDMM.bind(q, k, *tables, backend=backend)[0]


def reference(
    q: Tensor, k: Tensor, row_ends: Tensor, columns: Tensor, column_ends: Tensor, rows: Tensor, order: Tensor
) -> tuple[Tensor]:
    """The specification, in plain torch: both sides at every entry; O(Z K) memory."""
    with torch.autocast(q.device.type, enabled=False):
        given, M, H = q.dtype, q.shape[-3], q.shape[-2]
        m = lines_of(row_ends, columns.shape[-1])
        live = (m < M).unsqueeze(-1)
        near, far = take(q, torch.where(m < M, m, 0), H), take(k, columns, H)
        near, far = (torch.where(live, t.to(wide(given)), 0) for t in (near, far))
        return ((near * far).sum(-1).to(given),)


SDDMM = Primitive("sddmm", SIGNATURE, reference, backends=("cpu", "cuda", "gather"))


def pattern(sizes: Mapping[str, int], dims: str) -> Csr:
    """For the cases: Z entries, drawn once, and one fewer in each pattern than in the one before."""
    *lead, M, N = (sizes[d] for d in dims.split())
    drawn = random.uniform(random.key(3), (*lead, M * N)).argsort(-1)[..., : sizes["Z"]]
    fewer = torch.arange(math.prod(lead)).view(*lead, 1)
    places = torch.where(torch.arange(sizes["Z"]) < sizes["Z"] - fewer, drawn, M * N)
    return Csr(*build(places.sort(-1).values, M, N))


def sized(density: float, usual: Mapping[str, int], own: Mapping[str, int]) -> dict[str, int]:
    """The sizes of a case, with as many entries as the density says."""
    sizes = {**usual, **own}
    return sizes | {"Z": round(density * sizes["M"] * sizes["N"])}


def _case(name: str, mask: str = "M N", batch: str = "B", density: float = 0.4, tags: str = "", **sizes: int) -> Case:
    whole = sized(density, {"B": 2, "M": 5, "N": 4, "H": 2, "G": 2, "K": 3}, sizes)

    def call(q: Tensor, k: Tensor, backend: str | None = None) -> tuple[Tensor]:
        return (sddmm(beside(pattern(whole, mask), q), q, k, backend=backend),)

    return Case(name, call, {"q": f"{batch} M H K", "k": f"{batch} N G K"}, whole, frozenset(tags.split()))


CASES = (
    _case("shared"),
    _case("example", batch="", tags="tiny", M=3, N=3, K=2),
    _case("per head", mask="H M N", H=4),
    _case("per example", mask="B H M N", tags="tiny", M=2, N=3, K=2),
    _case("two batches", mask="C H M N", batch="B C", C=3),
    _case("grouped", H=6),
    _case("all", density=1.0),
    _case("nothing", density=0.0, tags="empty"),
    _case("odd", M=19, N=23, K=17),
    _case("no queries", M=0, tags="empty"),
    _case("no examples", B=0, tags="empty"),
)
