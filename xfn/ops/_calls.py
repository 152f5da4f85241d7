"""What attentions share: their letters, how a call is checked, and how a case of one is written."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from torch import Tensor

from .. import random
from .._core.case import Case, beside
from .._core.errors import KeyRequired, ShapeError
from .._core.kinds import FLOATS, autocast, check_kinds, check_number, check_probability, check_tensors
from .._core.levels import TENSORS
from .._core.shapes import Shape, Signature, check_groups
from ..bias import Bias

SIGNATURE = Signature.parse(
    "q M H K, k N G K, v N G V, dense? H|1 M|1 N|1, slopes? H; lo? M, hi? M, key? 2 -> out M H V, lse+ H M"
)


def checked(
    q: Tensor, k: Tensor, v: Tensor, bias: Bias | Tensor | None, p: float, scale: float | None, key: Tensor | None
) -> tuple[tuple[Tensor | None, ...], dict[str, float]]:
    """The operands in the order of the signature, and the options, of a call that is in order."""
    check_tensors({"q": q, "k": k, "v": v})
    q, k, v = autocast(q, k, v)
    M, N = (t.shape[-3] if t.dim() >= 3 else 0 for t in (q, k))
    lo, hi, dense, slopes = Bias.of(bias).resolve(M, N, q.device)
    check_kinds({"q": q, "k": k, "v": v}, {"bias": dense, "alibi": slopes, "key": key})
    p = check_probability(p)
    operands = {"q": q, "k": k, "v": v, "dense": dense, "slopes": slopes, "lo": lo, "hi": hi}
    sizes, batch = SIGNATURE.check(operands, called={"dense": "bias", "slopes": "alibi"})
    key, options = settled(sizes, batch, p, scale, key, "attention(q * scale, k, v, scale=1.0)")
    return (*operands.values(), key), options


def settled(
    sizes: Mapping[str, int], batch: Shape, p: float, scale: float | None, key: Tensor | None, scaled: str
) -> tuple[Tensor | None, dict[str, float]]:
    """The keys of dropout and the options, when sizes are in order; ``scaled`` is how to write a learnt scale."""
    if empty := [letter for letter in "GKV" if not sizes[letter]]:
        raise ShapeError(f"{empty[0]}=0 leaves nothing to attend with: it must be at least 1")
    check_groups(sizes, "q")
    if not p:
        key = None
    elif key is None:
        raise KeyRequired(f"p={p} drops attention weights, which needs a key: pass key=random.key(seed)")
    else:
        key = random.spread(key, batch)
    scale = sizes["K"] ** -0.5 if scale is None else check_number("scale", scale, f": write {scaled}")
    return key, {"p": p, "scale": scale}


def simple(
    q: Tensor, k: Tensor, v: Tensor, p: float, scale: float | None, key: Tensor | None, backend: str | None
) -> bool:
    """Whether a call asks for nothing but attention, of tensors behind which nothing hides."""
    absent = key is None and scale is None and backend is None and type(p) is float and p == 0
    return absent and type(q) in TENSORS and type(k) in TENSORS and type(v) in TENSORS


def fit(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the shapes, dtypes and devices of these tensors need no closer look."""
    return _fit(q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, q.device, k.device, v.device)


@lru_cache(maxsize=1024)
def _fit(q: Shape, k: Shape, v: Shape, *kinds: Any) -> bool:
    alike = len(set(kinds)) == 2 and kinds[0] in FLOATS and kinds[-1].type != "meta"
    meet = len(q) == len(k) >= 3 and (*q[:-3], *k[-3:-1], q[-1]) == k and (*k[:-1], v[-1]) == v
    return alike and meet and all((q[-1], *v[-2:])) and not q[-2] % k[-2]


def bounds(bias: Bias | Tensor | None, q: Tensor, k: Tensor) -> tuple[Tensor | None, ...] | None:
    """lo, hi and no key, of no bias or of one that is kept; on a CPU, for elsewhere tensors belong to a stream or to a
    graph. None where it is not."""
    if bias is None:
        return _UNBOUNDED
    known = type(bias) is Bias and q.is_cpu and q.dim() > 2 and k.dim() > 2
    kept = bias.kept(q.shape[-3], k.shape[-3]) if known else None  # type: ignore[union-attr]
    return None if kept is None else (kept.lo, kept.hi, None)


_UNBOUNDED = (None, None, None)


def case(
    attend: Callable[..., tuple[Tensor, Tensor]],
    name: str,
    bias: Callable[..., Bias | Tensor | None] = lambda: None,
    biased: str = "",
    *,
    batch: str = "B",
    p: float = 0.0,
    scale: float | None = None,
    tags: str = "",
    **sizes: int,
) -> Case:
    """A call of ``attend``; ``bias`` makes the bias from a tensor of the shape ``biased``, if that names one."""

    def call(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor, backend: str | None = None) -> tuple[Tensor, Tensor]:
        key = beside(random.key(5), q) if p else None
        return attend(q, k, v, beside(bias(*rest), q), p, scale, key=key, backend=backend)

    shapes = {"q": f"{batch} M H K", "k": f"{batch} N G K", "v": f"{batch} N G V", "bias": biased}
    usual = {"B": 2, "M": 5, "N": 5, "H": 2, "G": 2, "K": 4, "V": 4}
    return Case(name, call, {o: s for o, s in shapes.items() if s}, usual | sizes, frozenset(tags.split()))
