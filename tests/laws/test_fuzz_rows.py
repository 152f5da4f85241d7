"""The C++ kernels of rows on calls that nobody would write down, against the reference."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, func
from torch.utils import _pytree as tree

from xfn import random
from xfn._core.activations import ACTIVATIONS
from xfn._core.primitive import Lean
from xfn.info import primitives
from xfn.ops.rotary import PAIRINGS

from .test_fuzz import DTYPES, FUZZ, LAYOUTS, Tensors, agrees, lay

OPS = {p.name: p for p, _ in primitives() if isinstance(p, Lean) and "cpu" in p.backends}
NUMBERS = {"eps": 1e-5, "p": 0.3}


@dataclass(frozen=True)
class Rows:
    """A call: the shape of every operand that is there, and of every constant."""

    op: str
    dtype: torch.dtype
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    layout: str
    seed: int
    activation: str = "identity"
    pairing: str = "halves"
    holes: bool = False
    line_dtype: torch.dtype | None = None
    level: float = 0.0  # about which the numbers of x lie

    def constants(self) -> dict[str, Tensor]:
        shapes, generator = dict(self.shapes), torch.Generator().manual_seed(self.seed)
        found = {
            name: torch.randint(-2, 40, shapes[name], generator=generator) for name in ("lo", "hi") if name in shapes
        }
        return found | ({"key": random.key(self.seed).expand(shapes["key"])} if "key" in shapes else {})

    def call(self, backend: str) -> Callable[..., Tensors]:
        primitive, constants = OPS[self.op], self.constants()
        names = [o.name for o in primitive.signature.inputs]
        chosen = NUMBERS | {"activation": self.activation, "pairing": self.pairing}
        options: dict[str, Any] = {name: chosen[name] for name in primitive.options}
        given = [name for name, _ in self.shapes if name not in constants]

        def f(*x: Tensor) -> Tensors:
            tensors = dict(zip(given, x, strict=True)) | constants
            y = primitive.bind(*(tensors.get(name) for name in names), **options, backend=backend)
            return tuple(torch.where(t == -torch.inf, 0, t) for t in y)

        return f

    def tensors(self, dtype: torch.dtype) -> Tensors:
        generator = torch.Generator().manual_seed(self.seed)
        found = []
        for name, shape in self.shapes:
            if name in ("lo", "hi", "key"):
                continue
            own = self.line_dtype if self.line_dtype and name != "x" else self.dtype
            t = torch.randn(shape, generator=generator, dtype=torch.float64)
            t = t + self.level if name == "x" else t
            if name == "x" and self.holes:
                t = torch.where(torch.rand(shape, generator=generator) < 0.3, -torch.inf, t)
            t = lay(t.to(own), self.layout if len(shape) > 2 else "plain")
            found.append(t.double() if dtype == torch.float64 else t)
        return tuple(found)

    def family(self, backend: str, dtype: torch.dtype) -> dict[str, Any]:
        x, f = self.tensors(dtype), self.call(backend)
        y, pull = func.vjp(f, *x)[:2]
        generator = torch.Generator().manual_seed(self.seed + 1)
        dy = tree.tree_map(lambda t: torch.randn(t.shape, generator=generator).to(self.dtype).to(t.dtype), y)
        return {"forward": y, "backward": pull(dy)}


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    op = draw(st.sampled_from(sorted(OPS)))
    long = draw(st.booleans())
    E = draw(
        st.sampled_from([1023, 1024, 1030, 2500]) if long else st.integers(2, 150)
    )  # the norm of one number is flat
    few = st.integers(0, 2) if long else st.integers(0, 9)
    sizes = {**dict.fromkeys("ENFK", E), "M": draw(few), "H": draw(st.integers(1, 3)), "2": 2}
    sizes["L"] = draw(st.integers(1, E // 2))
    batch = draw(st.lists(st.integers(1, 3), max_size=2))
    own = lambda: tuple(draw(st.sampled_from([n, 1])) for n in batch[draw(st.integers(0, len(batch))) :])
    signature, masked = OPS[op].signature, op.endswith("softmax")
    given = [o for o in signature.inputs if not o.optional or draw(st.booleans())]
    shapes = tuple((o.name, (*own(), *(sizes[d] for d in o.dims))) for o in given)
    kinds = {name for name, _ in shapes}
    return Rows(
        op,
        draw(st.sampled_from(DTYPES)),
        shapes,
        draw(st.sampled_from(LAYOUTS)),
        draw(st.integers(0, 1000)),
        draw(st.sampled_from(sorted(ACTIVATIONS))),
        draw(st.sampled_from(PAIRINGS)),
        masked and draw(st.booleans()),
        torch.float32 if "norm" in op and "weight" in kinds and draw(st.booleans()) else None,
        draw(st.sampled_from([0.0, 1e4])) if masked else 0.0,
    )


def rows_equal_the_reference(problem: Rows) -> None:
    agrees(problem, Rows.family)


@pytest.mark.usefixtures("poisoned")
@FUZZ
@example(Rows("log_softmax", torch.float32, (("x", (3, 40)),), "plain", 0, level=1e4))
@given(rows())
def test_the_family_equals_the_reference(problem: Rows) -> None:
    rows_equal_the_reference(problem)


@pytest.mark.parametrize("op", sorted(OPS))
def test_threads_change_no_bit(op: str) -> None:
    names = {"x": (3, 700, 96), "weight": (3, 1, 96), "bias": (96,), "residual": (700, 96), "key": (3, 2)}
    names |= {"gate": (3, 700, 96), "up": (700, 96), "gate_bias": (96,), "up_bias": (3, 96)}
    names |= {"cos": (3, 40), "sin": (3, 40)}
    shapes = tuple((o.name, names[o.name]) for o in OPS[op].signature.inputs if o.name in names)
    found = []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(Rows(op, torch.float32, shapes, "plain", 0, "gelu").family("cpu", torch.float32))
    finally:
        torch.set_num_threads(1)
    for other in found[1:]:
        pairs = zip(tree.tree_leaves(other), tree.tree_leaves(found[0]), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
