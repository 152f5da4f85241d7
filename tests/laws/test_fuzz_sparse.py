"""The C++ kernels over a pattern's entries on calls that nobody would write down, against the reference."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import xfn
from xfn import random
from xfn.sparsity import Csr

from .test_fuzz import DTYPES, FEATURES, FUZZ, LAYOUTS, Problem, Tensors, equals_the_reference


@dataclass(frozen=True)
class SparseProblem(Problem):
    """A call under a pattern of its own shape and density."""

    pattern: tuple[int, ...] = ()
    density: float = 0.5

    def call(self, backend: str) -> Callable[..., Tensors]:
        key = random.key(self.seed) if self.p else None
        scale = None if self.sharpness is None else self.sharpness * self.shapes[0][-1] ** -0.5
        csr = Csr.from_mask(random.bernoulli(random.key(self.seed), self.density, self.pattern))

        def f(q: Tensor, k: Tensor, v: Tensor) -> Tensors:
            out, lse = xfn.sparse_attention_with_lse(csr, q, k, v, self.p, scale, key=key, backend=backend)
            return out, torch.where(lse == -torch.inf, 0, lse)

        return f


LENGTH = st.one_of(st.integers(0, 20), st.integers(0, 150))


@st.composite
def sparse_problems(draw: st.DrawFn, length: st.SearchStrategy[int] = LENGTH) -> SparseProblem:
    few = st.integers(1, 3)
    M, N, G, R = draw(length), draw(length), draw(few), draw(few)
    K, V = draw(FEATURES), draw(FEATURES)
    batch = draw(st.lists(few, max_size=2))
    own = lambda: tuple(draw(st.sampled_from([n, 1])) for n in batch[draw(st.integers(0, len(batch))) :])
    heads = draw(st.sampled_from([(), (1,), (G * R,)]))
    return SparseProblem(
        dtype=draw(st.sampled_from(DTYPES)),
        shapes=((*own(), M, G * R, K), (*own(), N, G, K), (*own(), N, G, V)),
        layouts=tuple(draw(st.sampled_from(LAYOUTS)) for _ in range(4)),
        biased=(),
        dense=(),
        dense_dtype=torch.float32,
        p=draw(st.sampled_from([0.0, 0.0, 0.3])),
        sharpness=draw(st.sampled_from([None, None, 2.0, 0.5, 0.0, -1.0])),
        seed=draw(st.integers(0, 1000)),
        pattern=((*own(), *heads, M, N) if heads else (M, N)),
        density=draw(st.sampled_from([0.0, 0.02, 0.2, 0.5, 1.0])),
    )


@pytest.mark.usefixtures("poisoned")
@FUZZ
@given(sparse_problems())
def test_the_family_equals_the_reference(problem: SparseProblem) -> None:
    equals_the_reference(problem)
