"""The C++ kernels on calls that nobody would write down: any shape, layout, bias and dtype, against the reference.

Problems are drawn from a fixed seed, so that a run repeats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial as partial_of
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, func
from torch.utils import _pytree as tree

import xfn
from xfn import bias, layout, random
from xfn._core.tables import BLOCKS
from xfn.bias import Bias

from ..cases import error

Tensors = tuple[Tensor, ...]
Members = Callable[..., dict[str, Any]]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
BIASES = ("causal", "bottom-right", "local", "span", "left", "segments", "mask", "dense", "alibi")
LENGTH = st.one_of(st.integers(0, 20), st.integers(0, 150))
FEATURES = st.one_of(st.integers(1, 20), st.integers(1, 80), st.sampled_from([128, 200, 257]))
LAYOUTS = ("plain", "heads first", "features sliced", "every second feature", "features first", "one for all")

FUZZ = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@dataclass(frozen=True)
class Problem:
    """A call, how its operands lie in memory, and what is added to their logits."""

    dtype: torch.dtype
    shapes: tuple[tuple[int, ...], ...]
    layouts: tuple[str, ...]
    biased: tuple[str, ...]
    dense: tuple[int, ...]
    dense_dtype: torch.dtype
    p: float
    sharpness: float | None
    seed: int
    tiles: tuple[int, float, bool, bool] | None = None
    """Of a layout: its block and density, whether heads differ, whether tiles are live in part."""

    @property
    def lengths(self) -> tuple[int, int]:
        return self.shapes[0][-3], self.shapes[1][-3]

    def tensors(self, seed: int) -> Tensors:
        """The operands that are differentiated: q, k, v, then a dense bias and slopes, if they are there."""
        generator = torch.Generator().manual_seed(self.seed + seed)
        draw = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)
        found = [lay(draw(s).to(self.dtype), how) for s, how in zip(self.shapes, self.layouts[:3], strict=True)]
        if "dense" in self.biased:
            found.append(lay(draw(self.dense).to(self.dense_dtype), self.layouts[3]))
        if "alibi" in self.biased:
            found.append(draw(self.shapes[0][-2:-1]).to(self.dtype))
        return tuple(found)

    def bias(self, rest: Tensors) -> Bias:
        """The sum of all that was drawn; what does not float comes from the seed."""
        M, N = self.lengths
        generator = torch.Generator().manual_seed(self.seed)
        some = lambda most, *shape: torch.randint(-3, most + 4, shape, generator=generator)
        cuts = lambda total: torch.diff(some(total, 3).clamp(0, total).sort().values, prepend=torch.zeros(1).long())
        floating = iter(rest)
        terms: dict[str, Callable[[], Bias]] = {
            "causal": bias.causal,
            "bottom-right": lambda: bias.causal("bottom-right"),
            "local": lambda: bias.local(int(some(M, 1).abs()), int(some(N, 1).abs())),
            "span": lambda: bias.span(some(N, *self.shapes[1][:-3], M), some(N, *self.shapes[1][:-3], M)),
            "left": lambda: bias.span(some(N, 1), N),
            "segments": lambda: bias.segments(cuts(M), cuts(N)),
            "mask": lambda: bias.dense(torch.rand(self.dense, generator=generator) < 0.7),
            "dense": lambda: bias.dense(next(floating)),
            "alibi": lambda: bias.alibi(next(floating) / 64),
        }
        return sum((term() for name, term in terms.items() if name in self.biased), Bias.of(None))

    def attend(self) -> Callable[..., Tensors]:
        """Over the tiles that were drawn, if any were."""
        if self.tiles is None:
            return xfn.attention_with_lse
        (M, N), (block, density, heads, partial) = self.lengths, self.tiles
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.shapes[0][-2] if heads else 1, -(-M // block), -(-N // block))
        made = layout.Layout(torch.rand(shape, generator=generator) < density, block, (M, N))
        if partial:
            made = made & layout.from_mask(torch.rand((M, N), generator=generator) < max(0.5, density), block)
        return partial_of(xfn.blocksparse_attention_with_lse, made)

    def call(self, backend: str) -> Callable[..., Tensors]:
        key, attend = random.key(self.seed) if self.p else None, self.attend()
        scale = None if self.sharpness is None else self.sharpness * self.shapes[0][-1] ** -0.5

        def f(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> Tensors:
            out, lse = attend(q, k, v, self.bias(rest), self.p, scale, key=key, backend=backend)
            return out, torch.where(lse == -torch.inf, 0, lse)

        return f

    def rounded(self, seed: int, dtype: torch.dtype) -> Tensors:
        return tuple(t.double() if dtype == torch.float64 else t for t in self.tensors(seed))

    def forward(self, backend: str, dtype: torch.dtype) -> dict[str, Any]:
        return {"forward": self.call(backend)(*self.rounded(0, dtype))}

    def family(self, backend: str, dtype: torch.dtype) -> dict[str, Any]:
        """Every member of the family, on numbers rounded to the problem's dtype and, but for its own, kept in that."""
        return self.members(backend, dtype, True)

    def pair(self, backend: str, dtype: torch.dtype) -> dict[str, Any]:
        """Its first two."""
        return self.members(backend, dtype, False)

    def members(self, backend: str, dtype: torch.dtype, whole: bool) -> dict[str, Any]:
        x, u, w = (self.rounded(i, dtype) for i in range(3))
        f = self.call(backend)
        y = f(*x)
        generator = torch.Generator().manual_seed(self.seed)
        V = self.shapes[2][-1]
        draw = lambda shape, to: (
            (torch.randn(shape, generator=generator, dtype=torch.float64) * V**-0.5).to(self.dtype).to(to)
        )
        dy, tdy = (tuple(draw(t.shape, t.dtype) for t in y) for _ in range(2))
        gradient = lambda dy, *x: func.vjp(f, *x)[1](dy)
        push = lambda *x: func.jvp(f, x, u)
        found = {"forward": y, "backward": gradient(dy, *x)}
        if not whole:
            return found
        found["dual"] = push(*x)
        found["hvp"] = func.jvp(gradient, (dy, *x), (tdy, *u))[1]
        found["jvp"], found["jvp2"] = func.jvp(push, x, w)[1]
        return found


def lay(t: Tensor, how: str) -> Tensor:
    """The same numbers, or for "one for all" the first example's, another way in memory."""
    if how == "heads first":
        return t.transpose(-3, -2).contiguous().transpose(-3, -2)
    if how == "features sliced":
        return torch.nn.functional.pad(t, (1, 2), value=torch.nan)[..., 1:-2]
    if how == "every second feature":
        return t.repeat_interleave(2, -1)[..., ::2]
    if how == "features first":
        return t.movedim(-1, 0).contiguous().movedim(0, -1)
    if how == "one for all" and t.dim() > 3 and t.shape[0]:
        return t[:1].clone().expand_as(t)
    return t


@st.composite
def problems(
    draw: st.DrawFn,
    queries: st.SearchStrategy[int] = LENGTH,
    keys: st.SearchStrategy[int] = LENGTH,
    features: st.SearchStrategy[int] = FEATURES,
) -> Problem:
    few = st.integers(1, 3)
    M, N, G, R = draw(queries), draw(keys), draw(few), draw(few)
    K, V = draw(features), draw(features)
    batch = draw(st.lists(few, max_size=2))
    own = lambda: tuple(draw(st.sampled_from([n, 1])) for n in batch[draw(st.integers(0, len(batch))) :])
    one = lambda n: draw(st.sampled_from([n, 1]))
    return Problem(
        dtype=draw(st.sampled_from(DTYPES)),
        shapes=((*own(), M, G * R, K), (*own(), N, G, K), (*own(), N, G, V)),
        layouts=tuple(draw(st.sampled_from(LAYOUTS)) for _ in range(4)),
        biased=tuple(draw(st.lists(st.sampled_from(BIASES), max_size=2, unique=True))),
        dense=(*own(), one(G * R), one(M), one(N)),
        dense_dtype=draw(st.sampled_from(DTYPES)),
        p=draw(st.sampled_from([0.0, 0.0, 0.3])),
        sharpness=draw(st.sampled_from([None, None, 2.0, 0.5, 0.0, -1.0])),
        seed=draw(st.integers(0, 1000)),
        tiles=draw(st.none() | st.tuples(st.sampled_from(BLOCKS), st.floats(0.0, 1.0), st.booleans(), st.booleans())),
    )


def numbers(results: Any) -> Tensor:
    """All numbers of a member, in a row: an error counts against the largest, for one result may be a sum of zeros."""
    return torch.cat([t.double().flatten() for t in tree.tree_leaves(results)])


def references(problem: Problem, members: Members) -> tuple[dict[str, Any], dict[str, Any]]:
    """The reference in the problem's dtype, and in float64."""
    same, exact = (members(problem, "reference", dtype) for dtype in (problem.dtype, torch.float64))
    return same, exact


def compare(problem: Problem, got: dict[str, Any], same: dict[str, Any], exact: dict[str, Any]) -> None:
    """In float64 to the last digits; else within three times the reference's own error and thirty-two roundings, for
    derivatives read out, lse and tangents that were rounded."""
    for member, want in exact.items():
        kinds = [[(t.shape, t.dtype) for t in tree.tree_leaves(found[member])] for found in (got, same)]
        assert kinds[0] == kinds[1]
        mine, theirs, right = (numbers(found) for found in (got[member], same[member], want))
        own = 3 * error(theirs, right) + 32 * torch.finfo(problem.dtype).eps
        allowed = 1e-10 if problem.dtype == torch.float64 else own
        found = error(mine, right)
        assert found <= allowed, f"{member}: error {found:.2e} exceeds {allowed:.2e}"


def agrees(problem: Problem, members: Members, backend: str = "cpu") -> None:
    compare(problem, members(problem, backend, problem.dtype), *references(problem, members))


def equals_the_reference(problem: Problem) -> None:
    agrees(problem, Problem.family)


@pytest.mark.usefixtures("poisoned")
@FUZZ
@given(problems())
def test_the_family_equals_the_reference(problem: Problem) -> None:
    equals_the_reference(problem)


def decoding() -> st.SearchStrategy[Problem]:
    """Few queries and many keys, in one range or several."""
    return problems(st.integers(1, 16), st.one_of(st.integers(0, 300), st.integers(1000, 4000)))


def decoding_equals_the_reference(problem: Problem) -> None:
    agrees(problem, Problem.forward)


@pytest.mark.usefixtures("poisoned")
@FUZZ
@given(decoding())
def test_few_queries_equal_the_reference(problem: Problem) -> None:
    decoding_equals_the_reference(problem)
