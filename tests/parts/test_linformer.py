"""Linformer: identity projections change nothing, and what is not there is zero."""

from typing import Any

import pytest
import torch
from torch import Tensor

import xfn
from xfn import ShapeError, random
from xfn._core.dims import Dims
from xfn.parts.attention.linformer import Linformer

from ..cases import agree

Q, K, V = random.normal(random.key(0), (3, 2, 6, 2, 4), dtype=torch.float64)
DIMS = Dims(model=8, heads=2, length=8)


def params(part: Linformer, dims: Dims = DIMS) -> Any:
    return {name: {"weight": layer["weight"].double()} for name, layer in part.init(random.key(1), dims).items()}


def padded(t: Tensor) -> Tensor:
    return torch.nn.functional.pad(t, (0, 0, 0, 0, 0, 2))


def test_identity_projections_are_attention() -> None:
    one = {name: {"weight": torch.eye(6, dtype=torch.float64)} for name in "kv"}
    agree(Linformer(rank=6).apply(one, Q, K, V), xfn.attention(Q, K, V))


def test_is_attention_to_projected_keys() -> None:
    p = params(Linformer(rank=3))
    k, v = (
        torch.stack([sum(p[name]["weight"][i, n] * t[:, n] for n in range(6)) for i in range(3)], 1)
        for name, t in (("k", K), ("v", V))
    )
    agree(Linformer(rank=3).apply(p, Q, K, V), xfn.attention(Q, k, v))


def test_a_short_sequence_is_one_that_zeros_fill_up() -> None:
    part = Linformer(rank=3)
    p = params(part)
    agree(part.apply(p, Q, K, V), part.apply(p, *(padded(t) for t in (Q, K, V)))[:, :6])
    agree(part.apply(p, Q[:, :2], K, V), part.apply(p, Q, K, V)[:, :2])
    kept = torch.arange(8) < 6
    anything = torch.cat([K, torch.full_like(K[:, :2], torch.inf)], 1)
    agree(part.apply(p, Q, anything, padded(V) + 1, kept), part.apply(p, Q, K, V + 1))
    agree(part.apply(p, Q, K, V, torch.zeros(2, 6, dtype=torch.bool)), torch.zeros_like(Q), 0.0)


def test_sizes() -> None:
    assert [list(w["weight"].shape) for w in Linformer().init(random.key(0), DIMS).values()] == [[2, 8], [2, 8]]
    assert Linformer().init(random.key(0), Dims(model=8, length=3))["k"]["weight"].shape == (1, 3)
    with pytest.raises(ShapeError, match=r"has N=6, but linformer was made for length=4: write Dims\(length=6\)"):
        Linformer().apply(params(Linformer(), Dims(model=8, heads=2, length=4)), Q, K, V)
    with pytest.raises(ValueError, match=r"linformer needs Dims\.length"):
        Linformer().init(random.key(0), Dims(model=8))
    with pytest.raises(ValueError, match="rank=0 leaves no keys"):
        Linformer(rank=0)
