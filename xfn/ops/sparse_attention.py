"""Attention over the entries of a sparse pattern, and nothing else computed.

    s = scale · q · k        at the entries of a Csr
    out = Σ (softmax(s) ∘ D) v        lse = log Σ exp(s)        over a row; D = keep / (1 − p), or 1 without dropout

The same function as ``attention`` with the pattern as its boolean mask, and the same weights dropped by the same key;
time and memory follow the entries, not M × N. Logits, softmax and sums are kept in float32, or float64 where that came
in; out is in q's dtype. A query without entries gives zeros, lse = −∞ and zero gradients.

Source: Child, Gray, Radford and Sutskever, "Generating long sequences with sparse transformers" (2019).
"""

from torch import Tensor

from .. import random
from .._core.case import Case, beside
from .._core.csr import LETTERS, Tables
from .._core.kinds import autocast, check_kinds, check_probability, check_tensors
from .._core.primitive import Primitive
from .._core.shapes import Signature
from ..sparsity import Csr
from . import attention
from ._calls import settled
from .sddmm import pattern, sized

SIGNATURE = Signature.parse(f"q M H K, k N G K, v N G V; {LETTERS}, key? 2 -> out M H V, lse+ H M")


def sparse_attention(
    csr: Csr,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p: float = 0.0,
    scale: float | None = None,
    *,
    key: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mix the values of the keys that each query sees in a pattern, weighted by softmax(scale · q kᵀ).

    Args:
        csr: a :class:`xfn.sparsity.Csr` of M queries and N keys: shared, per head, or per example.
        q: ``[..., M, H, K]``.
        k: ``[..., N, G, K]``; query head h reads key head h // (H // G).
        v: ``[..., N, G, V]``.
        p: probability of dropping a softmax weight, as in :func:`xfn.attention`.
        scale: factor of q kᵀ; by default K ** -0.5.
        key: what the dropout is drawn with; the same weights are dropped as in :func:`xfn.attention`.
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"gather"``; by default the first that can.

    Returns:
        ``[..., M, H, V]`` in q's dtype, or in that of ``torch.autocast``.

    Raises:
        ShapeError: shapes contradict each other.
        TypeError, ValueError: dtypes or devices differ, scale is a tensor, or p is not in [0, 1).
        KeyRequired: p > 0 without a key.
        Unsupported: the backend that was named cannot; the text says why.

    Example:
        >>> import torch
        >>> from xfn import attention, random, sparsity
        >>> q, k, v = random.normal(random.key(0), (3, 2, 5, 4, 8))
        >>> mask = random.bernoulli(random.key(1), 0.3, (5, 5))
        >>> out = sparse_attention(sparsity.Csr.from_mask(mask), q, k, v)
        >>> torch.allclose(out, attention(q, k, v, mask), atol=1e-6)
        True
    """
    return sparse_attention_with_lse(csr, q, k, v, p, scale, key=key, backend=backend)[0]


def sparse_attention_with_lse(
    csr: Csr,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p: float = 0.0,
    scale: float | None = None,
    *,
    key: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`sparse_attention`, with the log-sum-exp of each query's logits.

    Returns:
        ``out [..., M, H, V]`` in q's dtype and ``lse [..., H, M]`` in float32 (float64 stays); gradients flow
        through both.

    Example:
        >>> from xfn import random, sparsity
        >>> q, k, v = random.normal(random.key(0), (3, 5, 4, 8))
        >>> csr = sparsity.Csr.from_mask(random.bernoulli(random.key(1), 0.3, (5, 5)))
        >>> sparse_attention_with_lse(csr, q, k, v)[1].shape
        torch.Size([4, 5])
    """
    tables = Csr.of(csr).tables
    check_tensors({"q": q, "k": k, "v": v})
    q, k, v = autocast(q, k, v)
    check_kinds({"q": q, "k": k, "v": v}, {"csr": tables.columns, "key": key})
    p = check_probability(p)
    sizes, batch = SIGNATURE.check({"q": q, "k": k, "v": v} | tables._asdict(), tables.called)
    key, options = settled(sizes, batch, p, scale, key, "sparse_attention(csr, q * scale, k, v, scale=1.0)")
    return SPARSE_ATTENTION.bind(q, k, v, *tables, key, **options, backend=backend)  # type: ignore[return-value]


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_ends: Tensor,
    columns: Tensor,
    column_ends: Tensor,
    rows: Tensor,
    order: Tensor,
    key: Tensor | None,
    *,
    p: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The specification: dense attention under the pattern as a mask; O(M N) memory."""
    mask = Tables(row_ends, columns, column_ends, rows, order).mask()
    return attention.reference(q, k, v, mask, None, None, None, key, p=p, scale=scale)


SPARSE_ATTENTION = Primitive(
    "sparse_attention", SIGNATURE, reference, options=("p", "scale"), backends=("cpu", "cuda", "gather")
)


def _case(
    name: str,
    mask: str = "M N",
    batch: str = "B",
    density: float = 0.4,
    *,
    p: float = 0.0,
    scale: float | None = None,
    tags: str = "",
    **sizes: int,
) -> Case:
    whole = sized(density, {"B": 2, "M": 5, "N": 5, "H": 2, "G": 2, "K": 4, "V": 4}, sizes)

    def call(q: Tensor, k: Tensor, v: Tensor, backend: str | None = None) -> tuple[Tensor, Tensor]:
        csr, key = beside(pattern(whole, mask), q), beside(random.key(5), q) if p else None
        return sparse_attention_with_lse(csr, q, k, v, p, scale, key=key, backend=backend)

    shapes = {"q": f"{batch} M H K", "k": f"{batch} N G K", "v": f"{batch} N G V"}
    return Case(name, call, shapes, whole, frozenset(tags.split()))


CASES = (
    _case("shared"),
    _case("example", batch="", tags="tiny", M=3, N=4, K=2, V=3),
    _case("per head", mask="H M N", H=4, N=7, V=6),
    _case("per example", mask="B H M N", tags="tiny", M=3, N=3, K=2, V=2),
    _case("two batches", mask="C H M N", batch="B C", C=3),
    _case("grouped", H=6, G=2),
    _case("grouped per head", mask="H M N", H=4, G=1, K=3, V=5),
    _case("dropout", p=0.3, H=4, G=2, M=6, N=11),
    _case("dropout per example", mask="B H M N", p=0.5, tags="tiny", B=1, M=3, N=3, K=2, V=2),
    _case("all", density=1.0),
    _case("nothing", density=0.0),
    _case("thin", density=0.1, M=9, N=9),
    _case("scaled", scale=1.5),
    _case("turned", scale=-1.5),
    _case("level", scale=0.0),
    _case("odd", M=37, N=41, K=17, V=9),
    _case("no queries", M=0, tags="empty"),
    _case("no keys", N=0, tags="empty"),
    _case("no examples", B=0, tags="empty"),
    _case("long", density=0.05, tags="long", B=1, M=2048, N=2048, H=8, G=8, K=64, V=64),
)
