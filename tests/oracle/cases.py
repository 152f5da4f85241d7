"""Calls of ``xfn``, each beside what its documentation says of it: who sees whom, and what is added."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xfn import attention_with_lse, bias, merge_attentions, random

from .philox import child, kept
from .visibility import Bools, Rule, blocks, distance, everyone, inside, past, past_from_the_end, scattered, sees

Shape = tuple[int, ...]
Call = Callable[..., tuple[Tensor, Tensor]]
SEED, P = 5, 0.3


@dataclass(frozen=True, eq=False)
class Case:
    """``call(q, k, v, *rest, backend=)`` is an attention with these properties."""

    name: str
    shapes: tuple[Shape, ...]
    call: Call
    visible: Bools
    """``[..., H|1, M, N]``."""
    added: Callable[..., Any] = lambda: 0.0
    """What the rest of the tensors adds to the logits, in operators that every array library has."""
    scale: float | None = None
    kept: Bools | None = None
    """What dropout keeps, ``[..., H, M, N]``."""

    def __str__(self) -> str:
        return self.name


def case(
    name: str,
    biased: Callable[..., "bias.Bias | Tensor | None"] = lambda *_: None,
    visible: Rule | Bools = everyone,
    added: Callable[..., Any] = lambda: 0.0,
    *rest: Shape,
    batch: Shape = (2,),
    kbatch: Shape | None = None,
    M: int = 4,
    N: int = 4,
    H: int = 2,
    G: int = 2,
    K: int = 3,
    V: int = 2,
    scale: float | None = None,
    drops: bool = False,
    call: Call | None = None,
) -> Case:
    """``biased`` makes the bias of the call, from tensors of the shapes ``rest``."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
        p, key = (P, random.key(SEED)) if drops else (0.0, None)
        return attention_with_lse(q, k, v, biased(*rest), p, scale, key=key, backend=backend)

    kbatch = batch if kbatch is None else kbatch
    survives = None
    if drops and not batch:
        survives = kept((SEED, 0), P, H, M, N)
    elif drops:
        survives = np.stack([kept(child((SEED, 0), i), P, H, M, N) for i in range(batch[0])])
    return Case(
        name,
        ((*batch, M, H, K), (*kbatch, N, G, K), (*kbatch, N, G, V), *rest),
        call or attend,
        sees(M, N, visible) if callable(visible) else visible,
        added,
        scale,
        survives,
    )


def merged(cuts: Sequence[int], mask: Bools | None = None) -> Call:
    """The attentions over the keys between the cuts, merged."""

    def call(q: Tensor, k: Tensor, v: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
        spans = [slice(a, b) for a, b in pairwise(cuts)]
        hides = lambda s: None if mask is None else torch.from_numpy(mask[..., s].copy())
        parts = [attention_with_lse(q, k[..., s, :, :], v[..., s, :, :], hides(s), backend=backend) for s in spans]
        return merge_attentions(*zip(*parts, strict=True))

    return call


def hiding(mask: Bools) -> Callable[[], Tensor]:
    return lambda: torch.from_numpy(mask)


def shown(mask: Bools) -> bias.Bias:
    return bias.dense(torch.from_numpy(mask))


def alibi(M: int = 4, N: int = 4) -> Callable[..., Any]:
    return lambda slopes: -slopes[..., None, None] * distance(M, N)


same = lambda b: b
BLIND = np.array([True, False, True, False])[:, None].repeat(4, 1)
HOLES = scattered(0, 2, 2, 4, 5)
HOLES[1, :, 2] = False
PART = scattered(3, 4, 6)
PART[1, :4], PART[2] = False, False
INFINITE = sees(4, 4, lambda m, n: (m + n) % 3 > 0 and m != 2)
RAGGED = np.stack([blocks(4, 4, [1, 2], [0, 1], [1, 2], past),
                   blocks(4, 4, [3, 0], [0, 3], [3, 0], past)])[:, None]  # fmt: skip
SHORT = np.stack([sees(3, 4, lambda m, n: 1 <= n < 3), sees(3, 4, lambda m, n: 1 <= n < 1)])[:, None]

CASES = (
    case("dense"),
    case("one example", batch=()),
    case("two batches", batch=(2, 2), M=2, N=3),
    case("cross", M=3, N=5),
    case("tall", M=5, N=2, V=4),
    case("one key", N=1),
    case("shared keys", kbatch=()),
    case("shared keys of one example", kbatch=(1,), batch=(3,), M=3, N=3),
    case("grouped", bias.causal, lambda m, n: n <= m, H=4, G=2, M=3, N=3),
    case("multi-query", H=3, G=1, M=3),
    case("scaled", scale=1.5),
    case("scaled down", scale=-0.4),
    case("causal", bias.causal, lambda m, n: n <= m),
    case("causal, more keys", bias.causal, lambda m, n: n <= m, M=3, N=5),
    case("bottom-right", lambda: bias.causal("bottom-right"), lambda m, n: n - 5 <= m - 3, M=3, N=5),
    case("bottom-right, more queries", lambda: bias.causal("bottom-right"), lambda m, n: n - 3 <= m - 5, M=5, N=3),
    case("window", lambda: bias.local(1, 2), lambda m, n: m - 1 <= n <= m + 2, M=5, N=5, batch=()),
    case("window, one side", lambda: bias.local(None, 1), lambda m, n: n <= m + 1, M=3, N=5),
    case("window, bottom-right", lambda: bias.local(2, 0, "bottom-right"), lambda m, n: m <= n <= m + 2, M=3, N=5),
    case("window and causal", lambda: bias.local(1, 2) & bias.causal(), lambda m, n: m - 1 <= n <= m),
    case("window past the keys", lambda: bias.local(1, 0), lambda m, n: m - 1 <= n <= m, M=5, N=2),
    case("bias of heads", same, everyone, same, (2, 4, 4)),
    case("bias of examples", same, everyone, same, (2, 1, 4, 5), N=5),
    case("bias of all", same, everyone, same, (2, 2, 3, 4), M=3),
    case("bias of keys", same, everyone, same, (5,), N=5),
    case("bias of heads and keys", same, everyone, same, (2, 1, 5), N=5),
    case("bias of queries", same, everyone, same, (4, 1)),
    case("bias, a number", same, everyone, same, ()),
    case("bias brings the batch", same, everyone, same, (2, 1, 4, 4), batch=()),
    case("two biases", lambda a, b: bias.dense(a) + bias.dense(b), everyone, lambda a, b: a + b,
         (2, 1, 4), (2, 2, 4, 1)),
    case("bias and causal", lambda b: bias.causal() + bias.dense(b), lambda m, n: n <= m, same, (4, 1, 4), H=4),
    case("bias with infinities", lambda b: b.masked_fill(~torch.from_numpy(INFINITE), -torch.inf), INFINITE, same,
         (2, 4, 4)),
    case("mask", hiding(HOLES), HOLES, N=5),
    case("mask of heads", hiding(scattered(1, 2, 4, 4)), scattered(1, 2, 4, 4)),
    case("mask and bias", lambda b: shown(HOLES[0]) & bias.dense(b), HOLES[0], same, (2, 1, 1, 5), N=5),
    case("blind rows", hiding(BLIND), BLIND),
    case("blind rows and bias", lambda b: shown(BLIND) & bias.dense(b), BLIND, same, (2, 4, 4)),
    case("blind", lambda: bias.span(0, 0), lambda m, n: False),
    case("padding", lambda: bias.span(1, torch.tensor([[3], [1]])), SHORT, M=3),
    case("segments", lambda: bias.segments([1, 3]), blocks(4, 4, [1, 3], [0, 1], [1, 3], inside)),
    case("segments, causal", lambda: bias.segments([3, 2]).causal(),
         blocks(5, 5, [3, 2], [0, 3], [3, 2], past), M=5, N=5, batch=()),
    case("segments under causal", lambda: bias.segments([2, 2], [1, 3]) & bias.causal(),
         blocks(4, 4, [2, 2], [0, 1], [1, 3], inside) & sees(4, 4, lambda m, n: n <= m)),
    case("segments with keys", lambda: bias.segments([2, 0, 2], [2, 1, 3]),
         blocks(4, 6, [2, 0, 2], [0, 2, 3], [2, 1, 3], inside), N=6, H=4, batch=()),
    case("segments with keys, causal", lambda: bias.segments([1, 3], [3, 2]).causal(),
         blocks(4, 5, [1, 3], [0, 3], [3, 2], past), N=5),
    case("segments with keys, bottom-right", lambda: bias.segments([2, 3], [4, 2]).causal("bottom-right"),
         blocks(5, 6, [2, 3], [0, 4], [4, 2], past_from_the_end), M=5, N=6, batch=()),
    case("segments, window", lambda: bias.segments([4, 1]).local(1, 1),
         blocks(5, 5, [4, 1], [0, 4], [4, 1], lambda a, b, m, n: a - 1 <= b <= a + 1), M=5, N=5, batch=()),
    case("segments of each example", lambda: bias.segments(torch.tensor([[1, 2], [3, 0]])).causal(), RAGGED),
    case("padded", lambda: bias.padded([2, 1, 1], 2, [2, 1, 0]),
         blocks(4, 6, [2, 1, 1], [0, 2, 4], [2, 1, 0], inside), N=6, batch=()),
    case("padded, causal", lambda: bias.padded([2, 2], 3, [2, 3]).causal("bottom-right"),
         blocks(4, 6, [2, 2], [0, 3], [2, 3], past_from_the_end), N=6),
    case("alibi", bias.alibi, everyone, alibi(), (2,)),
    case("alibi of each example", bias.alibi, everyone, alibi(3, 5), (2, 2), M=3, N=5),
    case("alibi and causal", lambda s: bias.causal() + bias.alibi(s), lambda m, n: n <= m, alibi(), (4,), H=4, G=2),
    case("alibi and bias", lambda s, b: bias.alibi(s) + bias.dense(b), everyone, lambda s, b: alibi()(s) + b,
         (2,), (2, 1, 4)),
    case("alibi in segments", lambda s: bias.segments([1, 3]) + bias.alibi(s),
         blocks(4, 4, [1, 3], [0, 1], [1, 3], inside), alibi(), (2,)),
    case("merged", N=5, call=merged([0, 2, 5])),
    case("merged, with holes", visible=PART, N=6, call=merged([0, 1, 4, 6], PART)),
    case("dropout", bias.causal, lambda m, n: n <= m, drops=True, H=4, G=2, M=3, N=3),
    case("dropout, one example", same, everyone, same, (2, 3, 9), drops=True, M=3, N=9, batch=()),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Mapped:
    """Three attentions whose constants differ: ``make(constants[i])`` are the arguments of number i."""

    case: Case
    constants: Tensor
    make: Callable[[Tensor], dict[str, Any]]
    field: str
    values: Bools
    """What ``case`` has for ``field``, three times."""

    def __str__(self) -> str:
        return self.case.name

    def call(self, constant: Tensor, *x: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
        return attention_with_lse(*x, **self.make(constant), backend=backend)


def mapped(name: str, constants: Tensor, make: Callable[[Tensor], dict[str, Any]], values: Sequence[Bools]) -> Mapped:
    return Mapped(case(name, batch=()), constants, make, "kept" if "key" in name else "visible", np.stack(values))


MASKS = scattered(4, 3, 2, 4, 4)
MAPPED = (
    mapped("masks", torch.from_numpy(MASKS), lambda c: {"bias": c}, list(MASKS)),
    mapped("lengths", torch.tensor([4, 2, 0]), lambda c: {"bias": bias.span(0, c[None])},
           [np.arange(4)[None] < size for size in (4, 2, 0)]),
    mapped("segments", torch.tensor([[1, 3], [2, 1], [0, 4]]), lambda c: {"bias": bias.segments(c).causal()},
           [blocks(4, 4, [a, b], [0, a], [a, b], past) for a, b in ((1, 3), (2, 1), (0, 4))]),
    mapped("dropout keys", random.split(random.key(SEED), 3), lambda c: {"p": P, "key": c},
           [kept(child((SEED, 0), i), P, 2, 4, 4) for i in range(3)]),
)  # fmt: skip
