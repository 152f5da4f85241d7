"""A mixture of experts routes as a loop over tokens does."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import func

import xfn
from xfn import random
from xfn._core.errors import KeyRequired, ShapeError
from xfn.ops._routing import choices, places

from ..cases import agree

M, E, F, X = 12, 4, 6, 3


def drawn(experts: int = X, route: Any = "top") -> Any:
    return xfn.init_moe(random.key(0), E, F, experts, route, dtype=torch.float64)


def expert(params: Any, i: int) -> Any:
    return {name: {part: t[i] for part, t in layer.items()} for name, layer in params["experts"].items()}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("top", "room"), [(1, 1.0), (2, 1.0), (2, 0.5), (3, 4.0)])
def test_equals_a_loop_over_tokens(top: int, room: float, causal: bool) -> None:
    """First choices before seconds, tokens in their order, as many as there is room for; or token by token."""
    params, x = drawn(), torch.randn(M, E, dtype=torch.float64)
    gates = (x @ params["gate"]["weight"].T).softmax(-1)
    best = gates.argsort(-1, descending=True)[:, :top].tolist()
    size, taken, went = -(-int(top * M * room) // X), [0] * X, [[] for _ in range(M)]  # type: ignore[var-annotated]
    for j, m in sorted(product(range(top), range(M)), key=lambda turn: turn[::-1] if causal else turn):
        e = best[m][j]
        if taken[e] < size:
            taken[e] += 1
            went[m].append(e)
    want = torch.zeros(M, E, dtype=torch.float64)
    for m, experts in enumerate(went):
        total = sum(gates[m, e] for e in experts) if top > 1 else 1.0
        for e in experts:
            want[m] += gates[m, e] / total * xfn.mlp(expert(params, e), x[m])
    y, aux = xfn.moe(params, x, top, room=room, causal=causal)
    agree(y, want)
    share = torch.tensor([sum(b[0] == e for b in best) / M for e in range(X)], dtype=torch.float64)
    agree(aux["load_balance"], (share * gates.mean(0)).sum() / X)


def test_one_expert_is_an_mlp() -> None:
    params, x = drawn(1), torch.randn(2, M, E, dtype=torch.float64)
    agree(xfn.moe(params, x, 1)[0], xfn.mlp(expert(params, 0), x))


def test_tokens_go_round() -> None:
    params, x = drawn(route="round_robin"), torch.randn(M, E, dtype=torch.float64)
    y, aux = xfn.moe(params, x, 1, route="round_robin")
    agree(y, torch.stack([xfn.mlp(expert(params, m % X), x[m]) for m in range(M)]))
    assert aux["load_balance"] == 0


def test_no_expert_takes_more_than_it_has_room_for() -> None:
    chosen = torch.zeros(M, 1, dtype=torch.int64)
    assert (places(chosen, X, 5) < 15).sum() == 5
    y, _ = xfn.moe(drawn(), torch.ones(M, E, dtype=torch.float64), 1)
    assert (y != 0).any(-1).sum() == M // X


def test_gradients_reach_the_gate_and_every_expert() -> None:
    params, x = drawn(), torch.randn(4 * M, E, dtype=torch.float64)
    slope = func.grad(lambda params: xfn.moe(params, x)[0].sin().sum())(params)
    assert all((t.flatten(1).abs().sum(-1) > 0).all() for t in torch.utils._pytree.tree_leaves(slope))
    balance = func.grad(lambda params: xfn.moe(params, x)[1]["load_balance"])(params)
    assert balance["gate"]["weight"].abs().sum() > 0


def test_each_sequence_has_a_loss_of_its_own() -> None:
    params, x = drawn(), torch.randn(3, M, E, dtype=torch.float64)
    _, aux = xfn.moe(params, x)
    loop = torch.stack([xfn.moe(params, v)[1]["load_balance"] for v in x])
    agree(aux["load_balance"], loop)
    agree(func.vmap(lambda v: xfn.moe(params, v)[1]["load_balance"])(x), loop)


def test_with_a_key_seconds_are_drawn_by_their_odds() -> None:
    gates = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).expand(4000, 3)
    chosen = choices(gates, 2, random.key(1))
    assert (chosen[:, 0] == 0).all()
    assert abs((chosen[:, 1] == 1).double().mean() - 2 / 3) < 0.03


def test_a_batch_draws_what_its_examples_draw() -> None:
    params, x = drawn(), torch.randn(3, M, E, dtype=torch.float64)
    keys = random.split(random.key(1), 3)
    run = lambda x, key: xfn.moe(params, x, 2, "relu", 0.4, key=key)[0]
    loop = torch.stack([run(v, key) for v, key in zip(x, keys, strict=True)])
    agree(run(x, random.key(1)), loop, 1e-13)
    agree(func.vmap(run)(x, keys), loop, 1e-13)


def test_no_expert_is_chosen_twice() -> None:
    """Not even where the odds of all others are too small for a number."""
    gates = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert all(sorted(row) == [0, 1, 2] for row in choices(gates, 3, None).tolist())
    assert all(sorted(row) == [0, 1, 2] for row in choices(gates, 3, random.key(0)).tolist())


def test_what_is_wrong_is_said() -> None:
    x = torch.randn(M, E, dtype=torch.float64)
    with pytest.raises(ValueError, match="room=-1 is less than none"):
        xfn.moe(drawn(), x, room=-1)
    with pytest.raises(ShapeError, match="top=4 experts of X=3 cannot be chosen"):
        xfn.moe(drawn(), x, 4)
    with pytest.raises(ValueError, match="the parameters of moe have no gate, but route='top'"):
        xfn.moe(drawn(route="round_robin"), x)
    with pytest.raises(ValueError, match="route='best' is neither"):
        xfn.moe(drawn(), x, route="best")
    with pytest.raises(ValueError, match="route='best' is neither"):
        xfn.init_moe(random.key(0), 4, route="best")
    with pytest.raises(KeyRequired):
        xfn.moe(drawn(), x, p=0.1)
