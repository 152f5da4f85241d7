"""Many heads: project, attend with any attention, project back.

    y = drop(out(join heads(attend(split heads(q x), split heads(k context), split heads(v values)))))

Source: Vaswani et al., "Attention is all you need" (2017); fewer key heads: Ainslie et al., "GQA" (2023).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from .. import random
from .._core.case import Case, beside
from .._core.errors import ShapeError
from .._core.kinds import check_probability
from .._core.params import taken, tree
from .._core.philox import dropped
from .._core.shapes import Signature
from ..bias import Bias, causal
from ._init import even, zeros
from .attention import attention
from .dropout import check_key
from .fused_linear import affine, fused_linear
from .linear import Linear, init_linear
from .mlp import children

SIGNATURE = Signature.parse(
    "x M E, context N C, values N D, q.weight q E, q.bias? q, k.weight? k C, k.bias? k, v.weight? v D, v.bias? v, "
    "out.weight F o, out.bias? F -> y M F"
)
LONG = 4
"""Rows for each of E features from which on one product with q, k and v's weights joined is the faster one: by 2 to
4 % on a CPU at E = 384 and 512. At one row for each it is 1 % slower, and 10 % at E = 768."""

Turn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Heads(TypedDict):
    """q: E → H K, k: C → G K, v: D → G V, out: H V → F. A k or v without a weight shares that of q."""

    q: Linear
    k: Linear
    v: Linear
    out: Linear


class Shared(TypedDict):
    """A projection with a weight of its own, or none."""

    weight: NotRequired[Tensor]
    bias: NotRequired[Tensor]


def init_heads(
    key: Tensor, dim: int, heads: int, groups: int | None = None, *, key_dim: int | None = None,
    value_dim: int | None = None, context: int | None = None, values: int | None = None, bias: bool = True,
    shared: bool = False, dtype: torch.dtype = torch.float32,
) -> Heads:  # fmt: skip
    """Parameters of :func:`heads`: weights even in ±√(6 / (in + out)), biases 0, as torch's own draws them.

    Args:
        key: what they are drawn with; they are on its device.
        dim: E, the width of x and of the result.
        heads, groups: H, and G, by default as many.
        key_dim, value_dim: K and V of one head; by default E / H.
        context, values: C and D, the widths of what is attended to; by default E, and C.
        bias: whether the projections have biases.
        shared: whether q, k and v share one weight, with biases of their own.
        dtype: of the parameters.

    Returns:
        ``{"q": {"weight": [H K, E], …}, "k": {"weight": [G K, C], …}, "v": {"weight": [G V, D], …}, "out": …}``.

    Raises:
        ValueError: H does not divide E, G does not divide H, or projections that differ would be shared.

    Example:
        >>> init_heads(random.key(0), 8, 4, 2)["k"]["weight"].shape
        torch.Size([4, 8])
    """
    groups, context = groups or heads, context or dim
    if key_dim is None and value_dim is None and dim % heads:
        raise ValueError(f"dim={dim} does not divide into heads={heads}: give key_dim and value_dim")
    if heads % groups:
        raise ValueError(f"heads={heads} cannot share groups={groups} key heads evenly")
    key_dim, value_dim, values = key_dim or dim // heads, value_dim or dim // heads, values or context
    sizes = {"q": (dim, heads * key_dim), "k": (context, groups * key_dim), "v": (values, groups * value_dim)}
    if shared and len(set(sizes.values())) > 1:
        raise ValueError(f"q, k and v share no weight, for (in, out) of them are {sizes}")
    params: dict[str, Any] = {}
    for i, (name, (inputs, outputs)) in enumerate(sizes.items()):
        params[name] = {"bias": zeros(key, outputs, dtype=dtype)} if bias else {}
        if not shared or name == "q":
            bound = (6 / (inputs + outputs)) ** 0.5
            params[name]["weight"] = even(random.fold_in(key, i), outputs, inputs, bound=bound, dtype=dtype)
    params["out"] = dict(init_linear(random.fold_in(key, 3), heads * value_dim, dim, False, dtype=dtype))
    if bias:
        params["out"]["bias"] = zeros(key, dim, dtype=dtype)
    return params  # type: ignore[return-value]


def heads(
    params: Heads,
    x: Tensor,
    context: Tensor | None = None,
    values: Tensor | None = None,
    bias: Bias | Tensor | None = None,
    p: float = 0.0,
    *,
    heads: int,
    attend: Callable[..., Tensor] = attention,
    turn: Turn | None = None,
    key: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attend with many heads, each to projections of its own.

    Args:
        params: ``{"q": …, "k": …, "v": …, "out": …}`` as :func:`init_heads` makes them; biases may be left out, and so
            may the weights of k and v, which then share that of q.
        x: ``[..., M, E]``.
        context: ``[..., N, C]``, what keys are projected from; by default x.
        values: ``[..., N, D]``, what values are projected from; by default the context.
        bias: what ``attend`` takes as its bias.
        p: probability of dropping from the result. What the attention drops is its own: ``partial(attention, p=0.1)``.
        heads: H. How many key heads there are is seen from the weights.
        attend: ``attend(q, k, v, bias, key=key)`` of heads ``[..., M, H, K]``; any attention.
        turn: what is done to q and k before they meet, as ``xfn.rotary`` does.
        key: what is drawn with: one key ``[2]``, of which example i takes ``fold_in(key, i)``, or one per example
            ``[..., 2]``. The attention takes its child 0, the result its child 1.
        backend: of what is behind the last product, as in :func:`xfn.dropout`.

    Returns:
        ``[..., M, F]``.

    Raises:
        ShapeError, ValueError, TypeError: parameters or inputs are not of these names, shapes and dtypes.
        KeyRequired: p > 0 without a key.

    Example:
        >>> params = init_heads(random.key(0), 8, 4)
        >>> heads(params, torch.ones(2, 5, 8), heads=4).shape
        torch.Size([2, 5, 8])
    """
    context = x if context is None else context
    values = context if values is None else values
    t, sizes, _ = taken("heads", SIGNATURE, params, {"x": x, "context": context, "values": values})
    count = _counts(sizes, t, heads)
    p = check_probability(p)
    check_key(p, key)
    first, second = (None, None) if key is None else children(key, x, 2)
    q, k, v = (y.unflatten(-1, (count[letter], -1)) for letter, y in zip("qkv", _projected(t), strict=True))
    if turn is not None:
        q, k = turn(q, k)
    y = attend(q, k, v, bias, key=first).flatten(-2)
    return fused_linear(y, t["out.weight"], p, t.get("out.bias"), key=second if p else None, backend=backend)


def _projected(t: Mapping[str, Tensor]) -> Sequence[Tensor]:
    """q, k and v, in one product where they are of one sequence so long that joining the weights pays."""
    weights = [t.get(f"{letter}.weight", t["q.weight"]) for letter in "qkv"]
    biases = [t[f"{letter}.bias"] for letter in "qkv" if f"{letter}.bias" in t]
    one = t["x"] is t["context"] is t["values"] and len(biases) in (0, 3)
    if not one or torch.compiler.is_compiling() or t["x"].shape[:-1].numel() < LONG * t["x"].shape[-1]:
        places = zip(("x", "context", "values"), weights, "qkv", strict=True)
        return [affine(t[place], w, t.get(f"{letter}.bias")) for place, w, letter in places]
    y = affine(t["x"], torch.cat(weights), torch.cat(biases) if biases else None)
    parts: Sequence[Tensor] = y.split([w.shape[0] for w in weights], -1)
    return parts


def _counts(sizes: Mapping[str, int], t: dict[str, Tensor], heads: int) -> dict[str, int]:
    """How many heads each projection has."""
    if heads < 1 or sizes["q"] % heads:
        raise ShapeError(f"q.weight gives {sizes['q']} features, which {heads} heads cannot share evenly")
    wide = sizes["q"] // heads
    keys = sizes.get("k", sizes["q"])
    if keys % wide or heads % (keys // wide):
        raise ShapeError(f"k.weight gives {keys} features, which are no heads of K={wide} that {heads} heads can share")
    groups, width = keys // wide, sizes.get("v", sizes["q"])
    if width % groups:
        raise ShapeError(f"v.weight gives {width} features, which {groups} key heads cannot share evenly")
    if sizes["o"] != heads * (width // groups):
        raise ShapeError(f"out.weight takes {sizes['o']} features, but {heads} heads of V={width // groups} come")
    return {"q": heads, "k": groups, "v": groups}


def reference(
    params: Heads, x: Tensor, context: Tensor, values: Tensor, bias: Any, p: float, H: int, turn: Any, key: Any
) -> Tensor:
    """The specification, in plain torch."""

    def projected(name: str, x: Tensor) -> Tensor:
        layer: Any = params[name]  # type: ignore[literal-required]
        y = torch.einsum("...e,fe->...f", x, layer.get("weight", params["q"]["weight"]))
        return y + layer["bias"] if "bias" in layer else y

    q, k, v = (projected(name, t) for name, t in (("q", x), ("k", context), ("v", values)))
    K = q.shape[-1] // H
    q, k = q.unflatten(-1, (H, K)), k.unflatten(-1, (-1, K))
    q, k = (q, k) if turn is None else turn(q, k)
    y = attention(q, k, v.unflatten(-1, (k.shape[-2], -1)), bias, backend="reference")
    y = projected("out", y.flatten(-2))
    return dropped(y, children(key, x, 2)[1], p) if p else y


def _case(
    name: str, names: str, shapes: str, bias: Any = None, p: float = 0.0, across: bool = False, tags: str = "",
    **sizes: int,
) -> Case:  # fmt: skip
    def call(x: Tensor, *rest: Tensor, backend: str | None = None) -> tuple[Tensor]:
        context, values, *rest = rest if across else (x, x, *rest)  # type: ignore[assignment]
        params: Any = tree(dict(zip(names.split(), rest, strict=True)))
        key = beside(random.key(3), x) if p else None
        if backend == "reference":
            return (reference(params, x, context, values, bias, p, sizes["H"], None, key),)
        return (heads(params, x, context, values, bias, p, heads=sizes["H"], key=key, backend=backend),)

    operands = ("x", *("context", "values") * across, *names.split())
    given = dict(zip(operands, shapes.split(","), strict=True))
    return Case(name, call, given, {"B": 2, "M": 3, "E": 4, **sizes}, frozenset(tags.split()))


WEIGHTS = "q.weight k.weight v.weight out.weight"
BIASES = "q.bias k.bias v.bias out.bias"
CASES = (
    _case("self", f"{WEIGHTS} {BIASES}", "B M E,E E,E E,E E,E E,E,E,E,E", H=2),
    _case("tiny", WEIGHTS, "M E,E E,E E,E E,E E", tags="tiny", H=1, M=2, E=2),
    _case("grouped and causal", WEIGHTS, "M E,E E,R E,R E,E E", causal(), H=4, R=2),
    _case("shared", f"q.weight out.weight {BIASES}", "B M E,E E,E E,E,E,E,E", H=2),
    _case("across", WEIGHTS, "B M E,N C,N D,Q E,Q C,W D,F W", across=True, H=2, N=5, C=3, D=2, Q=6, W=8, F=3),
    _case("dropout", f"{WEIGHTS} out.bias", "B M E,E E,E E,E E,E E,E", p=0.4, H=2),
    _case("no queries", WEIGHTS, "M E,N E,N E,E E,E E,E E,E E", across=True, tags="empty", H=2, M=0, N=2),
)
