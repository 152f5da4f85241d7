"""A table of rows, one for each word.

y[m] = weight[tokens[m]]
"""

from typing import Any, TypedDict

import torch
from torch import Tensor

from .._core.case import Case, beside
from .._core.kinds import check_kinds, check_tensors, is_integer
from .._core.levels import plain
from .._core.params import taken
from .._core.shapes import Signature
from ._init import normal

SIGNATURE = Signature.parse("weight W E ; tokens M -> y M E")
STD = 0.02


class Embedding(TypedDict):
    """weight ``[W, E]``."""

    weight: Tensor


def init_embedding(
    key: Tensor, words: int, dim: int, std: float = STD, *, dtype: torch.dtype = torch.float32
) -> Embedding:
    """Parameters of :func:`embedding`, normal.

    Args:
        key: what they are drawn with; they are on its device.
        words: W.
        dim: E.
        std: their standard deviation.
        dtype: of the parameters.

    Returns:
        ``{"weight": [W, E]}``.

    Example:
        >>> from xfn import random
        >>> init_embedding(random.key(0), 100, 8)["weight"].shape
        torch.Size([100, 8])
    """
    return {"weight": normal(key, words, dim, std=std, dtype=dtype)}


def embedding(params: Embedding, tokens: Tensor) -> Tensor:
    """The row of every token: weight[tokens].

    Args:
        params: ``{"weight": [W, E]}``.
        tokens: integers ``[...]`` in [0, W).

    Returns:
        ``[..., E]`` in the parameters' dtype.

    Raises:
        ShapeError, ValueError, TypeError: parameters or tokens are not of these names, shapes and dtypes.
        IndexError: a token is no word; on other devices than the CPU, as the device says it.

    Example:
        >>> embedding({"weight": torch.eye(3)}, torch.tensor([2, 0]))
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """
    t, _, _ = taken("embedding", SIGNATURE, params, {"tokens": None}, mixed=True)  # no product for autocast
    return looked_up(t["weight"], tokens)


def looked_up(table: Tensor, tokens: Any, name: str = "tokens", called: str = "weight [W, E]") -> Tensor:
    """``table[tokens]``, or what is wrong with them. They are not looked at before they are used.

    Not by indexing, of which Inductor makes wrong tangents of gradients, and whose gradient takes twice as long.
    """
    check_tensors({name: tokens})
    if not is_integer(tokens):
        raise TypeError(f"{name} is {tokens.dtype}, but must be integers: write {name}.long()")
    check_kinds({called: table}, {name: tokens})
    if tokens.dtype not in (torch.int32, torch.int64):
        tokens = tokens.long()
    try:
        return torch.nn.functional.embedding(tokens, table)
    except IndexError as error:
        far = f" from {tokens.min().item()} to {tokens.max().item()}" if plain((tokens,)) else ""
        raise IndexError(f"{name} go{far} beyond {called}, which has {table.shape[0]} rows") from error


def reference(params: Embedding, tokens: Tensor) -> Tensor:
    """The specification, in plain torch: a product with ones and zeros."""
    weight = params["weight"]
    return torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device)[tokens] @ weight


def _case(name: str, tokens: Tensor, tags: str = "", **sizes: int) -> Case:
    def call(weight: Tensor, backend: str | None = None) -> tuple[Tensor]:
        return ((reference if backend == "reference" else embedding)({"weight": weight}, beside(tokens, weight)),)

    return Case(name, call, {"weight": "W E"}, {"W": 4, "E": 3, **sizes}, frozenset(tags.split()))


CASES = (
    _case("a word twice", torch.tensor([2, 0, 2]), tags="tiny", W=3, E=2),
    _case("a batch", torch.tensor([[3, 1, 3], [0, 0, 3]])),
    _case("no tokens", torch.zeros(2, 0, dtype=torch.int32), tags="empty"),
)
