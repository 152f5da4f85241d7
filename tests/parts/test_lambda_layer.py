"""Lambda layers: the published formula, with the maps that are never made."""

import pytest
import torch
from torch import Tensor, func
from torch.utils._python_dispatch import TorchDispatchMode

from xfn import ShapeError, random
from xfn._core.dims import Dims
from xfn.parts.attention import lambda_layer
from xfn.parts.attention.lambda_layer import LambdaLayer

from ..cases import agree

PART, T = LambdaLayer(), 9
E = random.normal(random.key(9), (2 * T - 1, 4), dtype=torch.float64)


def draw(M: int, N: int, V: int = 3) -> tuple[Tensor, ...]:
    shapes = (2, M, 2, 4), (2, N, 2, 4), (2, N, 2, V)
    return tuple(random.normal(random.key(i), shape, dtype=torch.float64) for i, shape in enumerate(shapes))


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """With every map λ_m."""
    place = torch.arange(k.shape[-3]) - torch.arange(q.shape[-3])[:, None] + T - 1
    content = torch.einsum("bnhk,bnhv->bhkv", k.softmax(-3), v)
    positions = torch.einsum("mnk,bnhv->bmhkv", E[place], v)
    return torch.einsum("bmhk,bmhkv->bmhv", q, content[:, None] + positions)


@pytest.mark.parametrize("block", [lambda_layer.BLOCK, 4, 1])
@pytest.mark.parametrize(("M", "N"), [(9, 9), (6, 6), (1, 1), (1, 7), (7, 1), (5, 9), (9, 5)])
def test_is_the_formula(M: int, N: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lambda_layer, "BLOCK", block)
    q, k, v = draw(M, N)
    agree(PART.apply({"rel_pos_emb": E}, q, k, v), formula(q, k, v))
    one = PART.apply({"rel_pos_emb": E}, q, k[:, :, :1], v[:, :, :1])
    agree(one, formula(q, k[:, :, :1].expand(-1, -1, 2, -1), v[:, :, :1].expand(-1, -1, 2, -1)))


def test_positions_mix() -> None:
    """Every value reaches every place, and not every place alike."""
    q, k, v = (t[0] for t in draw(6, 6))
    slopes = func.jacrev(lambda v: PART.apply({"rel_pos_emb": E}, q, torch.zeros_like(k), v))(v)[:, 0, 0, :, 0, 0]
    assert slopes.abs().min() > 0
    assert len(slopes[1].unique()) == 6


def test_padding_is_not_seen() -> None:
    q, k, v = draw(6, 6)
    kept = torch.tensor([True, True, False, True, False, False])
    want = formula(q, torch.where(kept[:, None, None], k, -1e9), torch.where(kept[:, None, None], v, 0))
    noise = torch.where(kept, 0, torch.inf)[:, None, None]
    agree(PART.apply({"rel_pos_emb": E}, q, k + noise, v + noise, kept), want)
    nothing = PART.apply({"rel_pos_emb": E}, q, k, v, torch.zeros(6, dtype=torch.bool))
    agree(nothing, torch.zeros_like(v), 0.0)


class Largest(TorchDispatchMode):
    """The most numbers in one tensor."""

    numbers = 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = f(*args, **kwargs or {})
        if isinstance(out, Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


def test_no_map_is_made() -> None:
    q = torch.randn(64, 1, 16)
    with Largest() as seen:
        y = func.vjp(lambda e, q, k, v: PART.apply({"rel_pos_emb": e}, q, k, v), torch.randn(127, 16), q, q, q)
        y[1](q)
    assert seen.numbers <= 64 * (64 + 64)


def test_sizes() -> None:
    assert PART.init(random.key(0), Dims(model=8, heads=2, length=5))["rel_pos_emb"].shape == (9, 4)
    with pytest.raises(ShapeError, match="lambda_layer was made for length=9, but has M=10 queries and N=3 keys"):
        PART.apply({"rel_pos_emb": E}, *draw(10, 3))
