"""Words and where they stand.

y[m] = drop(word[tokens[m]] + position[m])
"""

from typing import TypedDict

import torch
from torch import Tensor

from .. import random
from .._core.case import Case, beside
from .._core.errors import ShapeError
from .._core.kinds import check_probability, check_tensors
from .._core.params import taken, tree
from .._core.philox import dropped
from .._core.shapes import Signature
from ._init import normal
from ._positions import Positions, placed
from .dropout import check_key, dropout
from .embedding import STD, looked_up

SIGNATURE = Signature.parse("word W E, position T E ; tokens M, positions? M -> y M E")


class Vocab(TypedDict):
    """word ``[W, E]``, position ``[T, E]``."""

    word: Tensor
    position: Tensor


def init_vocab(
    key: Tensor, words: int, length: int, dim: int, std: float = STD, *, dtype: torch.dtype = torch.float32
) -> Vocab:
    """Parameters of :func:`vocab`, normal.

    Args:
        key: what they are drawn with; they are on its device.
        words: W.
        length: T, how many positions there are.
        dim: E.
        std: their standard deviation.
        dtype: of the parameters.

    Returns:
        ``{"word": [W, E], "position": [T, E]}``.

    Example:
        >>> {name: list(t.shape) for name, t in init_vocab(random.key(0), 100, 16, 8).items()}
        {'word': [100, 8], 'position': [16, 8]}
    """
    return {
        "word": normal(random.fold_in(key, 0), words, dim, std=std, dtype=dtype),
        "position": normal(random.fold_in(key, 1), length, dim, std=std, dtype=dtype),
    }


def vocab(
    params: Vocab,
    tokens: Tensor,
    p: float = 0.0,
    positions: Positions = 0,
    *,
    key: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """drop(word[tokens] + position[positions]).

    Args:
        params: ``{"word": [W, E], "position": [T, E]}``.
        tokens: integers ``[..., M]`` in [0, W).
        p: probability of dropping.
        positions: where the first token stands, the others behind it, or integers ``[..., M]``, where each does; all
            in [0, T).
        key: what is drawn with, as in :func:`xfn.dropout`. Required when p > 0.
        backend: of the dropout.

    Returns:
        ``[..., M, E]`` in the parameters' dtype.

    Raises:
        ShapeError, ValueError, TypeError: parameters or tokens are not of these names, shapes and dtypes.
        IndexError: a token is no word, or stands behind the last position; on other devices than the CPU, as the
            device says it.
        KeyRequired: p > 0 without a key.

    Example:
        >>> params = {"word": torch.eye(2), "position": torch.tensor([[0.1, 0.1], [0.2, 0.2]])}
        >>> vocab(params, torch.tensor([1, 1]))
        tensor([[0.1000, 1.1000],
                [0.2000, 1.2000]])
    """
    t, _, _ = taken("vocab", SIGNATURE, params, {"tokens": None, "positions": None})
    p = check_probability(p)
    check_key(p, key)
    check_tensors({"tokens": tokens})
    sizes, _ = SIGNATURE.check({**t, "tokens": tokens})
    word = looked_up(t["word"], tokens)
    M, T = sizes["M"], sizes["T"]
    if isinstance(positions, Tensor):
        at = placed(positions, M, tokens.device)
        SIGNATURE.check({**t, "tokens": tokens, "positions": at})
        place = looked_up(t["position"], at, "positions", "position [T, E]")
    else:
        placed(positions, 0, tokens.device)
        if not 0 <= positions <= positions + M <= T:
            raise ShapeError(f"position [T, E] has T={T}, but M={M} tokens begin at {positions}")
        place = t["position"][positions : positions + M]
    return dropout(word + place, p, key=key, backend=backend)


def reference(params: Vocab, tokens: Tensor, start: int, p: float, key: Tensor | None) -> Tensor:
    """The specification, in plain torch."""
    word, position = params["word"], params["position"]
    ones = torch.eye(word.shape[0], dtype=word.dtype, device=word.device)[tokens]
    y = ones @ word + position[start : start + tokens.shape[-1]]
    return y if key is None else dropped(y, random.spread(key, tokens.shape[:-1]), p)


def _case(name: str, tokens: Tensor, start: int = 0, p: float = 0.0, tags: str = "", **sizes: int) -> Case:
    def call(word: Tensor, position: Tensor, backend: str | None = None) -> tuple[Tensor]:
        params, key = tree({"word": word, "position": position}), beside(random.key(3), word) if p else None
        at = beside(tokens, word)
        if backend == "reference":
            return (reference(params, at, start, p, key),)  # type: ignore[arg-type]
        return (vocab(params, at, p, start, key=key, backend=backend),)  # type: ignore[arg-type]

    return Case(
        name, call, {"word": "W E", "position": "T E"}, {"W": 4, "T": 5, "E": 3, **sizes}, frozenset(tags.split())
    )


CASES = (
    _case("a word twice", torch.tensor([2, 0, 2]), tags="tiny", W=3, T=3, E=2),
    _case("dropout", torch.tensor([[3, 1, 3], [0, 0, 3]]), p=0.3),
    _case("a later start", torch.tensor([[3, 1, 3], [0, 0, 3]]), 2),
    _case("no tokens", torch.zeros(2, 0, dtype=torch.int64), tags="empty"),
)
