"""Compositional attention: every search with every retrieval, as published, and nothing between examples."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.utils import _pytree as tree

from xfn import ShapeError, bias, random
from xfn._core.dims import Dims
from xfn.parts.attention.compositional import Compositional

from ..cases import agree

E, H = 12, 2
DIMS = Dims(model=E, heads=H)
X, CONTEXT = (random.normal(random.key(i), (3, n, E), dtype=torch.float64) for i, n in enumerate((5, 7)))
SCORES = ("product", "linear", "mlp")
every_score = pytest.mark.parametrize("score", SCORES)


def params(part: Compositional) -> Any:
    """With biases that are not zero."""
    made = part.init(random.key(2), DIMS)
    return tree.tree_map(lambda t: t.double() + 0.1 * torch.randn(t.shape, dtype=torch.float64), made)


def formula(part: Compositional, p: Any, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
    """One example, one head and one rule after the other."""
    through = lambda layer, x: x @ layer["weight"].mT + layer.get("bias", 0)
    heads = lambda t, n: t.unflatten(-1, (n, -1)).unbind(-2)
    R = part.rules or H
    q, k = heads(through(p["q"], x), H), heads(through(p.get("k", p["q"]), context), H)
    v = heads(through(p.get("v", p["q"]), context), R)
    joined, q = [], tuple(t / (E / H) ** 0.5 for t in q)
    for h in range(H):
        asked = through(p["value_q"], q[h]) if part.q_compose else heads(through(p["value_q"], x), H)[h]
        search = torch.where(mask, q[h] @ k[h].mT, -torch.inf).softmax(-1)
        found, scores = [search @ v[r] for r in range(R)], []
        for f in found:
            both = torch.cat([f, asked], -1)
            if part.score == "product":
                scores.append((asked * through(p["value_k"], f)).sum(-1) / asked.shape[-1] ** 0.5)
            elif part.score == "linear":
                scores.append(through(p["score"], both)[..., 0])
            else:
                scores.append(through(p["score"]["down"], through(p["score"]["up"], both).relu())[..., 0])
        choice = torch.stack(scores, -1).softmax(-1)
        joined.append(sum(choice[:, r : r + 1] * found[r] for r in range(R)))
    out: Tensor = through(p["out"], torch.cat(joined, -1))
    return out


@every_score
@pytest.mark.parametrize(("compose", "separate", "own"), [*product((False, True), repeat=3)])
def test_is_the_formula(score: Any, compose: bool, separate: bool, own: bool) -> None:
    part = Compositional(3, 5, score, compose, separate, own)
    p = params(part)
    whole, causal = torch.ones(5, 7).bool(), torch.ones(5, 5).tril().bool()
    agree(part.apply(p, X, CONTEXT), torch.stack([formula(part, p, *x, whole) for x in zip(X, CONTEXT, strict=True)]))
    want = torch.stack([formula(part, p, x, x, causal) for x in X])
    agree(part.apply(p, X, bias=bias.causal()), want)
    agree(part.apply(p, X, None, causal), want)


@every_score
def test_a_gradient_reaches_what_is_asked_but_where_it_cancels(score: Any) -> None:
    part = Compositional(score=score)
    slope = func.grad(lambda p: part.apply(p, X).square().sum())(params(part))
    assert (slope["value_q"]["weight"].abs().max() > 1e-6) == (score != "linear")
    for name, leaf in flat(slope).items():
        assert leaf.abs().max() > 1e-9 or name.startswith("value_q") or name.endswith("bias"), name


@every_score
@pytest.mark.parametrize("compose", [False, True])
def test_examples_do_not_meet(score: Any, compose: bool) -> None:
    part = Compositional(score=score, q_compose=compose)
    p = params(part)
    agree(part.apply(p, X), torch.stack([part.apply(p, x) for x in X]))


def test_a_query_that_sees_nothing_finds_nothing() -> None:
    part = Compositional()
    p = part.init(random.key(0), DIMS)
    y = part.apply(p, X.float(), bias=torch.zeros(5, 5, dtype=torch.bool))
    agree(y, torch.zeros_like(y), 0.0)


def test_sizes() -> None:
    shapes = lambda part: {n: list(t.shape) for n, t in flat(part.init(random.key(0), DIMS)).items()}
    assert shapes(Compositional(3, 5, "mlp", separate=True, bias=False)) == {
        "q.weight": [12, 12], "k.weight": [12, 12], "v.weight": [12, 12], "value_q.weight": [10, 12],
        "out.weight": [12, 8], "score.up.weight": [5, 9], "score.down.weight": [1, 5],
    }  # fmt: skip
    assert shapes(Compositional(score="linear", q_compose=True))["value_q.weight"] == [6, 6]
    with pytest.raises(ValueError, match=r"Dims\.model=12 does not divide into rules=5"):
        Compositional(5).init(random.key(0), DIMS)
    with pytest.raises(ValueError, match="the parameters of compositional are"):
        Compositional(score="mlp").apply(Compositional().init(random.key(0), DIMS), X.float())
    wrong = Compositional().init(random.key(0), DIMS)
    wrong["out"]["weight"] = wrong["out"]["weight"][:, :11]
    with pytest.raises(ShapeError, match="fit no number of heads"):
        Compositional().apply(wrong, X.float())


def flat(t: Any, path: str = "") -> dict[str, Tensor]:
    if isinstance(t, Tensor):
        return {path[1:]: t}
    return {name: leaf for key, part in t.items() for name, leaf in flat(part, f"{path}.{key}").items()}
