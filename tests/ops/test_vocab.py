"""Tables of words and of positions: what is looked up, and what is said of a token that is no word."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, func

import xfn
from xfn import KeyRequired, ShapeError, random

from ..cases import agree

WORDS, LENGTH, E = 6, 5, 4
PARAMS = xfn.init_vocab(random.key(0), WORDS, LENGTH, E, dtype=torch.float64)
TOKENS = torch.tensor([[5, 0, 5], [1, 2, 3]])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_any_integers_are_tokens(dtype: torch.dtype) -> None:
    weight = PARAMS["word"]
    assert torch.equal(xfn.embedding({"weight": weight}, TOKENS.to(dtype)), weight[TOKENS])
    assert torch.equal(xfn.embedding({"weight": weight}, TOKENS[0, 0]), weight[5])


def test_autocast_casts_no_words() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert xfn.embedding({"weight": torch.eye(3)}, torch.tensor([1])).dtype == torch.float32


def test_words_and_positions_are_added() -> None:
    agree(xfn.vocab(PARAMS, TOKENS), PARAMS["word"][TOKENS] + PARAMS["position"][:3])
    late = PARAMS["word"][TOKENS] + PARAMS["position"][2:]
    agree(xfn.vocab(PARAMS, TOKENS, positions=2), late)
    agree(xfn.vocab(PARAMS, TOKENS, positions=torch.arange(2, 5)), late)
    starts = torch.tensor([2, 0])
    at = starts[:, None] + torch.arange(3)
    want = PARAMS["word"][TOKENS] + PARAMS["position"][at]
    agree(xfn.vocab(PARAMS, TOKENS, positions=at), want)
    agree(func.vmap(lambda tokens, start: xfn.vocab(PARAMS, tokens, positions=start))(TOKENS, starts), want)


def test_a_batch_drops_what_its_examples_drop() -> None:
    y = xfn.vocab(PARAMS, TOKENS, 0.5, key=random.key(1))
    keys = random.split(random.key(1))
    agree(y, torch.stack([xfn.vocab(PARAMS, TOKENS[i], 0.5, key=keys[i]) for i in range(2)]))
    agree(y, xfn.dropout(xfn.vocab(PARAMS, TOKENS), 0.5, key=random.key(1)))
    assert 0 < (y == 0).sum() < y.numel()


def test_gradients_are_counts() -> None:
    slope = func.grad(lambda params: xfn.vocab(params, TOKENS).sum())(PARAMS)
    agree(slope["word"], torch.tensor([1.0, 1, 1, 1, 0, 2], dtype=torch.float64)[:, None].expand(WORDS, E))
    agree(slope["position"], torch.tensor([2.0, 2, 2, 0, 0], dtype=torch.float64)[:, None].expand(LENGTH, E))
    each = func.vmap(func.grad(lambda w, t: xfn.embedding({"weight": w}, t).sum()), (None, 0))(PARAMS["word"], TOKENS)
    agree(each.sum(0), slope["word"])


def test_learned_positions_and_a_token_before_all() -> None:
    x = torch.randn(2, 4, E, dtype=torch.float64)
    table = {"position": PARAMS["position"]}
    agree(xfn.learned(table, x.new_zeros(LENGTH, E)), table["position"])
    params = {**table, "token": torch.randn(E, dtype=torch.float64)}
    y = xfn.learned(params, x)
    agree(y[:, 1:], x + table["position"][1:])
    agree(y[:, 0], (params["token"] + table["position"][0]).expand(2, E))
    agree(xfn.learned(params, x[1]), y[1])


def test_what_is_drawn() -> None:
    params = xfn.init_vocab(random.key(3), 1000, 500, 64)
    for table in params.values():
        assert isinstance(table, Tensor)
        assert abs(table.mean().item()) < 1e-3
        assert abs(table.std().item() - 0.02) < 1e-3
    assert not torch.equal(params["word"][:500], params["position"])
    learned = xfn.init_learned(random.key(3), 500, 64, token=True)
    assert learned["position"].shape == (501, 64)
    assert not learned["token"].any()


FAR = torch.tensor([0, 7, -2])


def embedded(tokens: Any) -> Tensor:
    return xfn.embedding({"weight": PARAMS["word"]}, tokens)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: embedded(FAR), IndexError, "tokens go from -2 to 7 beyond weight [W, E], which has 6 rows"),
        (lambda: func.vmap(embedded)(FAR), IndexError, "tokens go beyond weight [W, E], which has 6 rows"),
        (
            lambda: xfn.vocab(PARAMS, TOKENS, positions=torch.arange(3, 6)),
            IndexError,
            "positions go from 3 to 5 beyond position [T, E], which has 5 rows",
        ),
        (lambda: embedded(FAR.float()), TypeError, "tokens is torch.float32, but must be integers"),
        (lambda: embedded([1, 2]), TypeError, "tokens is a list, but must be a torch.Tensor"),
        (
            lambda: xfn.vocab(PARAMS, TOKENS, positions=3),
            ShapeError,
            "position [T, E] has T=5, but M=3 tokens begin at 3",
        ),
        (lambda: xfn.vocab(PARAMS, TOKENS, positions=-1), ShapeError, "but M=3 tokens begin at -1"),
        (lambda: xfn.vocab(PARAMS, TOKENS, 0.1), KeyRequired, "pass key=random.key(seed)"),
        (
            lambda: xfn.vocab({"word": PARAMS["word"]}, TOKENS),  # type: ignore[typeddict-item]
            ValueError,
            "the parameters of vocab are word, position, but these lack position",
        ),
        (
            lambda: xfn.learned({"position": PARAMS["position"]}, PARAMS["position"][1:]),
            ShapeError,
            "position [T, E] has T=5, but x [..., M, E] has M=4 tokens",
        ),
        (
            lambda: xfn.learned(
                {"position": PARAMS["position"], "token": torch.zeros(E).double()}, torch.zeros(5, E).double()
            ),
            ShapeError,
            "has M=5 tokens and one before them",
        ),
    ],
)
def test_errors_say_what_to_write(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        call()
