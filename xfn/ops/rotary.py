"""Rotary positions: pairs of features turn by an angle that grows with the position.

    y[a] = cos θ · x[a] − sin θ · x[b]         θ = position · base^(−2i / width)        for pair i = (a, b)
    y[b] = sin θ · x[a] + cos θ · x[b]

    pairing         pair i
    "halves"        (i, i + width / 2)          GPT-NeoX, Llama as Hugging Face stores it
    "adjacent"      (2i, 2i + 1)                RoFormer, Llama as Meta stores it

so that q_m · k_n depends on m − n alone. Angles are in float64; turning is one pass, in float32, or float64 where that
came in.

Source: Su et al., "RoFormer" (2021).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._core.case import Case
from .._core.errors import ShapeError
from .._core.kinds import check_kinds, check_number, check_tensors, is_integer, wide
from .._core.primitive import Lean
from .._core.shapes import Signature
from ._positions import Positions, angles, frequencies, placed

SIGNATURE = Signature.parse("q M H K, k N G K ; positions? M, k_positions? N -> rq M H K, rk N G K")
TURNED = Signature.parse("x M H K, cos M L, sin M L -> y M H K")
PAIRINGS = ("halves", "adjacent")
Scaling = float | Callable[[Tensor], Tensor]


def rotary(
    q: Tensor,
    k: Tensor,
    positions: Positions = 0,
    k_positions: Positions | None = None,
    base: float = 10000.0,
    width: int | None = None,
    pairing: str = "halves",
    scaling: Scaling = 1.0,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """q and k with their features turned, in pairs, by position · base^(−2i / width).

    Args:
        q: ``[..., M, H, K]``.
        k: ``[..., N, G, K]``.
        positions: where the first query stands, the others behind it, or integers ``[..., M]``, where each does.
        k_positions: the same of keys; by default as of queries.
        base: of the frequencies. A context s times as long wants ``base * s ** (width / (width - 2))`` ("NTK-aware").
        width: how many features turn, from the first on; by default all K.
        pairing: ``"halves"``: feature i with i + width / 2; ``"adjacent"``: 2i with 2i + 1.
        scaling: a number, by which positions are divided, or a function of the frequencies ``[width / 2]``, as
            :func:`xfn.llama3_frequencies`.
        backend: ``"reference"``, ``"cpu"``, ``"triton"`` or ``"aten"``; by default the first that can.

    Returns:
        ``(q, k)``, turned, in their own shapes and dtype.

    Raises:
        ShapeError: shapes contradict each other.
        TypeError, ValueError: dtypes or devices differ, width is odd or above K, no pairing has that name.

    Examples:
        >>> q = k = torch.ones(3, 1, 2)
        >>> rotary(q, k)[0].squeeze(1)
        tensor([[ 1.0000,  1.0000],
                [-0.3012,  1.3818],
                [-1.3254,  0.4932]])

        One query more, behind 100 keys that were turned when they came; then two examples with a start each:

        >>> q, _ = rotary(q[:1], k[:1], positions=100)
        >>> starts = torch.tensor([7, 9])
        >>> q, k = rotary(torch.ones(2, 3, 1, 4), torch.ones(2, 3, 1, 4), starts[:, None] + torch.arange(3))
    """
    check_tensors({"q": q, "k": k})
    check_kinds({"q": q, "k": k}, {})
    sizes, _ = SIGNATURE.check({"q": q, "k": k})
    width = _width(width, sizes["K"])
    if pairing not in PAIRINGS:
        raise ValueError(f"no pairing is called {pairing!r}; there are {', '.join(PAIRINGS)}")
    f = _scaled(frequencies(width, base, q.device), scaling)
    at = placed(positions, sizes["M"], q.device)
    one = k_positions is None and sizes["M"] == sizes["N"]
    if k_positions is None and not one and isinstance(positions, Tensor) and positions.dim():
        raise ShapeError(
            f"positions [..., M] are those of M={sizes['M']} queries, but k has N={sizes['N']}: pass k_positions too"
        )
    k_at = at if one else placed(positions if k_positions is None else k_positions, sizes["N"], q.device, "k_positions")
    SIGNATURE.check({"q": q, "positions": at})
    SIGNATURE.check({"k": k, "k_positions": k_at})
    if not width:
        return q, k
    table = _table(at, f, q.dtype)
    pairs = ((q, table), (k, table if one else _table(k_at, f, q.dtype)))
    rq, rk = (ROTARY.bind(x, *tables, pairing=pairing, backend=backend)[0] for x, tables in pairs)
    return rq, rk


def llama3_frequencies(
    frequencies: Tensor, factor: float = 8.0, length: int = 8192, low: float = 1.0, high: float = 4.0
) -> Tensor:
    """Frequencies for a longer context: low ones are divided, high ones stay, and those between are blended.

    A frequency f has the wavelength λ = 2π / f; with t = (length / λ − low) / (high − low), cut to [0, 1], it becomes
    t f + (1 − t) f / factor.

    Args:
        frequencies: ``[F]``, in radians a token.
        factor: by how much the context grows.
        length: of the context that was learned.
        low, high: turns within that context, up to which a frequency is low, and from which it is high.

    Returns:
        ``[F]``.

    Raises:
        ValueError: low is not below high.

    Example:
        >>> llama3_frequencies(torch.tensor([1.0, 1e-3, 1e-4]), factor=8.0)
        tensor([1.0000e+00, 2.1361e-04, 1.2500e-05])
        >>> q, k = rotary(torch.ones(3, 1, 64), torch.ones(3, 1, 64), base=500000.0, scaling=llama3_frequencies)

    Source: Llama Team, "The Llama 3 herd of models" (2024).
    """
    if not low < high:
        raise ValueError(f"low={low} must be below high={high}")
    turns = length * frequencies / (2 * math.pi)
    t = ((turns - low) / (high - low)).clamp(0, 1)
    return (t + (1 - t) / factor) * frequencies


def _width(width: int | None, K: int) -> int:
    if width is None:
        if K % 2:
            raise ShapeError(f"q has K={K} features, which do not pair: pass width={K - 1}")
        return K
    if not is_integer(width) or isinstance(width, Tensor) or width < 0 or width % 2 or width > K:
        raise ValueError(f"width={width!r} must be an even number of features, up to K={K}")
    return width


def _scaled(f: Tensor, scaling: Scaling) -> Tensor:
    if callable(scaling):
        return scaling(f)
    if check_number("scaling", scaling) <= 0:
        raise ValueError(f"scaling={scaling} must be above 0: positions are divided by it")
    return f / scaling


def _table(positions: Tensor, f: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[..., M, width / 2]``."""
    turns = angles(positions, f)
    return turns.cos().to(wide(dtype)), turns.sin().to(wide(dtype))


def turning(x: Tensor, cos: Tensor, sin: Tensor, *, pairing: str) -> tuple[Tensor]:
    """The specification for x ``[..., M, H, K]`` and tables ``[..., M, width / 2]``, in plain torch."""
    cos, sin, width = *(t.to(wide(x.dtype)).unsqueeze(-2) for t in (cos, sin)), 2 * cos.shape[-1]
    dim, pairs = (-2, (2, width // 2)) if pairing == "halves" else (-1, (width // 2, 2))
    a, b = x[..., :width].to(cos.dtype).unflatten(-1, pairs).unbind(dim)
    y = torch.stack([a * cos - b * sin, a * sin + b * cos], dim).flatten(-2).to(x.dtype)
    return (y if width == x.shape[-1] else torch.cat([y, x[..., width:].expand(*y.shape[:-1], -1)], -1),)


ROTARY = Lean(
    "rotary", TURNED, turning, options=("str pairing",), backends=("cpu", "triton", "aten"),
    unread=lambda needs, **_: () if any(needs[1:]) else (0,),
)  # fmt: skip


def reference(
    x: Tensor, positions: Tensor, base: float, width: int, pairing: str, scale: Callable[[Tensor], Tensor]
) -> Tensor:
    """The specification, in plain torch: each position has a matrix, and its heads are multiplied by it."""
    f = scale(base ** (-torch.arange(0, width, 2, dtype=torch.float64) / max(1, width)))
    theta = positions.double()[:, None] * f
    i = torch.arange(width // 2)
    a, b = (i, i + width // 2) if pairing == "halves" else (2 * i, 2 * i + 1)
    R = torch.eye(x.shape[-1], dtype=torch.float64).repeat(len(positions), 1, 1)
    R[:, a, a], R[:, a, b], R[:, b, a], R[:, b, b] = theta.cos(), -theta.sin(), theta.sin(), theta.cos()
    return torch.einsum("mab,...mhb->...mha", R.to(wide(x.dtype)), x.to(wide(x.dtype))).to(x.dtype)


def _case(
    name: str, start: int = 0, k_start: int | None = None, base: float = 10000.0, width: int | None = None,
    pairing: str = "halves", scaling: Scaling = 1.0, q: str = "B M H K", k: str = "B N G K", tags: str = "",
    **sizes: int,
) -> Case:  # fmt: skip
    def call(q: Tensor, k: Tensor, backend: str | None = None) -> tuple[Tensor, Tensor]:
        if backend != "reference":
            return rotary(q, k, start, k_start, base, width, pairing, scaling, backend=backend)
        scale = scaling if callable(scaling) else lambda f: f / scaling
        starts = (start, start if k_start is None else k_start)
        at = [torch.arange(x.shape[-3]) + s for x, s in zip((q, k), starts, strict=True)]
        turn = [reference(x, p, base, width or q.shape[-1], pairing, scale) for x, p in zip((q, k), at, strict=True)]
        return turn[0], turn[1]

    sizes = {"B": 2, "M": 4, "N": 4, "H": 2, "G": 1, "K": 6, **sizes}
    return Case(name, call, {"q": q, "k": k}, sizes, frozenset(tags.split()))


CASES = (
    _case("halves", tags="tiny compiled", M=2, N=2, K=4),
    _case("adjacent", 3, pairing="adjacent", q="M H K", k="N G K", tags="tiny compiled", M=2, N=1, K=2),
    _case("partial", 100, width=4, scaling=4.0),
    _case("partial and adjacent", width=4, pairing="adjacent", K=7),
    _case("many pairs", 7, q="B C M H K", k="N G K", C=2, K=34),
    _case("decoding", 9, 0, M=1, N=10, base=500.0),
    _case("stretched", -2, scaling=lambda f: llama3_frequencies(f, length=16)),
    _case("no queries", tags="empty", M=0),
)
