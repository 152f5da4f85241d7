"""A mixture of experts: each token goes to a few of X feed-forward parts.

    g = softmax(gate x)        y = Σ gₑ / Σ g · expertₑ(x)        over the top experts e that had room

A sequence of M tokens is routed on its own. An expert has room for ⌈top · M / X · room⌉ of them: first choices come
first, then seconds, each in the order of the sequence; who comes too late is dropped, and gets 0. The loss that
balances the load is (1 / X) Σₑ cₑ / M · mean gₑ, with cₑ the number of first choices.

Source: Lepikhin et al., "GShard" (2020); top = 1 as Fedus, Zoph and Shazeer, "Switch transformers" (2021), have it.
"""

import math
from typing import Any, Literal, NotRequired, TypedDict

import torch
from torch import Tensor

from .. import random
from .._core.activations import ACTIVATIONS, check_activation
from .._core.case import Case
from .._core.errors import ShapeError
from .._core.kinds import check_number, check_probability, wide
from .._core.params import taken, tree
from .._core.shapes import Signature
from ._init import even, fan_in
from ._routing import balance, choices, filled, marked, mixed, places
from .dropout import check_key, dropout
from .mlp import children

SIGNATURE = Signature.parse(
    "x M E, gate.weight? X E, experts.up.weight X F E, experts.up.bias? X F, experts.down.weight X E F, "
    "experts.down.bias? X E -> y M E"
)
Route = Literal["top", "round_robin"]


class Experts(TypedDict):
    """The maps of X experts, stacked."""

    weight: Tensor
    bias: NotRequired[Tensor]


class MoE(TypedDict):
    """gate: E → X, and the experts; tokens that go round need no gate."""

    gate: NotRequired[dict[str, Tensor]]
    experts: dict[str, Experts]


def init_moe(
    key: Tensor, dim: int, hidden: int | None = None, experts: int = 4, route: Route = "top", bias: bool = True, *,
    dtype: torch.dtype = torch.float32,
) -> MoE:  # fmt: skip
    """Parameters of :func:`moe`: each expert's as those of an :func:`xfn.mlp`, the gate's as of a linear map.

    Args:
        key: what they are drawn with; they are on its device.
        dim: E.
        hidden: F; by default 4 E.
        experts: X.
        route: as of :func:`moe`; there is no gate for ``"round_robin"``.
        bias: whether the experts have biases.
        dtype: of the parameters.

    Returns:
        ``{"gate": {"weight": [X, E]}, "experts": {"up": {"weight": [X, F, E], …}, "down": {"weight": [X, E, F], …}}}``.

    Example:
        >>> init_moe(random.key(0), 3, experts=2)["experts"]["up"]["weight"].shape
        torch.Size([2, 12, 3])
    """
    check_route(route)
    hidden = 4 * dim if hidden is None else hidden
    stacked: dict[str, Experts] = {}
    for i, (name, inputs, outputs) in enumerate((("up", dim, hidden), ("down", hidden, dim))):
        stacked[name] = {"weight": fan_in(random.fold_in(key, i), experts, outputs, inputs, dtype=dtype)}
        if bias:
            bound = 1 / math.sqrt(max(1, inputs))
            stacked[name]["bias"] = even(random.fold_in(key, 2 + i), experts, outputs, bound=bound, dtype=dtype)
    if route == "round_robin":
        return {"experts": stacked}
    return {"gate": {"weight": fan_in(random.fold_in(key, 4), experts, dim, dtype=dtype)}, "experts": stacked}


def moe(
    params: MoE, x: Tensor, top: int = 2, activation: str = "gelu", p: float = 0.0, *, route: Route = "top",
    room: float = 1.0, causal: bool = False, key: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Each token through the ``top`` experts that its gate likes best, as far as they have room.

    Args:
        params: ``{"gate": {"weight": [X, E]}, "experts": {"up": …, "down": …}}`` as :func:`init_moe` makes them.
        x: ``[..., M, E]``.
        top: how many experts a token goes to, 1 … X.
        activation: the name of one of :mod:`xfn.activations`.
        p: probability of dropping, within an expert and from its result.
        route: ``"top"``, or ``"round_robin"``, which sends token m to expert m mod X, and has no gate.
        room: how many tokens an expert takes, in shares of an even load.
        causal: all choices of a token go before those of the next, so that none takes the place of an earlier one.
        key: one key ``[2]``, of which example i takes ``fold_in(key, i)``, or one per example ``[..., 2]``. With it,
            choices behind the first are made with Gumbel noise, as in training. Required when p > 0.

    Returns:
        ``(y [..., M, E], {"load_balance": [...]})``, a loss for each sequence.

    Raises:
        ShapeError, ValueError, TypeError: parameters or x are not of these names, shapes and dtypes, or there are not
            so many experts.
        KeyRequired: p > 0 without a key.

    Example:
        >>> y, aux = moe(init_moe(random.key(0), 3), torch.ones(2, 8, 3))
        >>> y.shape, aux["load_balance"].shape
        (torch.Size([2, 8, 3]), torch.Size([2]))
    """
    t, sizes, batch = taken("moe", SIGNATURE, params, {"x": x})
    X, M, p = sizes["X"], sizes["M"], check_probability(p)
    check_route(route)
    if (route == "top") != ("gate.weight" in t):
        raise ValueError(f"the parameters of moe have {'no' if route == 'top' else 'a'} gate, but route={route!r}")
    if not 1 <= top <= X:
        raise ShapeError(f"top={top} experts of X={X} cannot be chosen")
    check_key(p, key)
    keys = (None,) * 3 if key is None else children(key, x, 3)
    if route == "top":
        gates = (t["x"] @ t["gate.weight"].mT).to(wide(x.dtype)).softmax(-1)
        chosen = choices(gates, top, keys[2])
    else:
        gates = t["x"].new_ones(*batch, M, X, dtype=wide(x.dtype))
        chosen = (torch.arange(M, device=x.device) % X).unsqueeze(-1).expand(*batch, M, 1)
    if check_number("room", room) < 0:
        raise ValueError(f"room={room} is less than none: an expert takes room · top · M / X tokens")
    size = math.ceil(chosen.shape[-1] * M / X * room)
    place = places(chosen, X, size, causal)
    shares = torch.where(place < X * size, gates.gather(-1, chosen), 0)
    if chosen.shape[-1] > 1:
        total = shares.sum(-1, keepdim=True)
        shares = shares / torch.where(total == 0, 1, total)
    y = mixed(_experts(t, filled(t["x"], place, X, size), check_activation(activation), p, keys), place, shares)
    return y, {"load_balance": balance(gates, chosen[..., :1]) if route == "top" else gates.new_zeros(batch)}


def _experts(t: dict[str, Tensor], x: Tensor, activation: str, p: float, keys: tuple[Tensor | None, ...]) -> Tensor:
    """Every expert on the tokens that it has room for: ``[..., X, size, E]``."""
    numbers = torch.arange(x.shape[-3], device=x.device)
    for key, name, follows in ((keys[0], "up", activation), (keys[1], "down", "identity")):
        each = random.fold_in(key.unsqueeze(-2), numbers) if p and key is not None else None
        x = x @ t[f"experts.{name}.weight"].mT
        x = dropout(x, p, t.get(f"experts.{name}.bias"), follows, key=each)
    return x


def check_route(route: Route) -> None:
    if route not in ("top", "round_robin"):
        raise ValueError(f"route={route!r} is neither 'top' nor 'round_robin'")


def reference(params: MoE, x: Tensor, top: int, route: Route, room: float, causal: bool) -> tuple[Tensor, Tensor]:
    """The specification, in plain torch: every expert on every token."""
    up, down = params["experts"]["up"], params["experts"]["down"]
    X, M = up["weight"].shape[0], x.shape[-2]
    every = torch.einsum("...me,xfe->...xmf", x, up["weight"]) + up["bias"].unsqueeze(-2)
    every = torch.einsum("...xmf,xef->...mxe", ACTIVATIONS["gelu"].value(every), down["weight"]) + down["bias"]
    if route == "round_robin":
        gates, turns = x.new_ones(*x.shape[:-1], X), torch.arange(M, device=x.device) % X
        chosen = turns.expand(x.shape[:-1]).unsqueeze(-1)
    else:
        gates = torch.einsum("...me,xe->...mx", x, params["gate"]["weight"]).softmax(-1)
        chosen = gates.topk(top, -1).indices
    size = math.ceil(chosen.shape[-1] * M / X * room)
    live = places(chosen, X, size, causal) < X * size
    shares = sum(marked(chosen[..., j : j + 1], gates) * live[..., j : j + 1] for j in range(chosen.shape[-1])) * gates
    total = shares.sum(-1, keepdim=True)
    shares = shares if chosen.shape[-1] == 1 else shares / torch.where(total == 0, 1, total)
    loss = balance(gates, chosen[..., :1]) if route == "top" else gates.new_zeros(x.shape[:-2])
    return (every * shares.unsqueeze(-1)).sum(-2), loss


def _case(
    name: str, top: int, route: Route = "top", room: float = 1.0, causal: bool = False, tags: str = "", **sizes: int
) -> Case:
    names = [f"experts.{layer}.{part}" for layer in ("up", "down") for part in ("weight", "bias")]
    shapes = ["X F E", "X F", "X E F", "X E"]
    if route == "top":
        names, shapes = ["gate.weight", *names], ["X E", *shapes]

    def call(x: Tensor, *rest: Tensor, backend: str | None = None) -> tuple[Tensor, Tensor]:
        params: Any = tree(dict(zip(names, rest, strict=True)))
        if backend == "reference":
            return reference(params, x, top, route, room, causal)
        y, aux = moe(params, x, top, route=route, room=room, causal=causal)
        return y, aux["load_balance"]

    given = dict(zip(("x", *names), ("B M E", *shapes), strict=True))
    return Case(name, call, given, {"B": 2, "M": 6, "E": 4, "F": 5, "X": 3, **sizes}, frozenset(tags.split()))


CASES = (
    _case("second choices", 2),
    _case("first choices", 1, room=2.0),
    _case("little room, causal", 2, room=0.4, causal=True, M=7),
    _case("round robin", 1, "round_robin"),
    _case("one expert", 1, tags="tiny", B=1, M=2, E=2, F=2, X=1),
    _case("all experts", 3, room=2.0),
    _case("no tokens", 2, tags="empty", M=0),
)
