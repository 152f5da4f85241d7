"""``jax.nn.dot_product_attention`` in JAX and under the same name here; JAX takes logits in float32."""

import inspect
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from xfn.compat.jax import dot_product_attention

from .test_jax import QUICKLY, jax

B, T, S, N, K, H = 2, 5, 7, 4, 2, 8
Array = npt.NDArray[Any]
GENERATOR = np.random.default_rng(0)
BIAS = GENERATOR.standard_normal((B, N, T, S)).astype(np.float32)
MASK = (GENERATOR.random((B, N, T, S)) < 0.7) | (np.arange(S) == 2)
LENGTHS = {"query_seq_lengths": np.array([5, 3], np.int32), "key_value_seq_lengths": np.array([4, 7], np.int32)}

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.3},
    "bias": {"bias": BIAS},
    "bias of heads": {"bias": BIAS[:1]},
    "bias without a batch": {"bias": BIAS[0]},
    "bias of examples": {"bias": BIAS[:, :1]},
    "bias of keys": {"bias": BIAS[:1, :1, :1]},
    "mask": {"mask": MASK},
    "mask of examples": {"mask": MASK[:, :1]},
    "bias and mask": {"bias": BIAS, "mask": MASK[:1, :, :1]},
    "causal": {"is_causal": True},
    "causal and bias": {"is_causal": True, "bias": BIAS},
    "window": {"local_window_size": (1, 2)},
    "window to both sides": {"local_window_size": 2},
    "window and causal": {"local_window_size": (2, 0), "is_causal": True},
    "lengths": LENGTHS,
    "lengths of keys, causal": {"key_value_seq_lengths": LENGTHS["key_value_seq_lengths"], "is_causal": True},
    "lengths of queries": {"query_seq_lengths": LENGTHS["query_seq_lengths"]},
    "by name": {"implementation": "xla"},
}


def tensors(options: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for name, v in options.items()}


def close(got: Any, want: Any) -> None:
    a, b = np.asarray(got), np.asarray(want)
    assert a.shape == b.shape
    assert np.abs(a - b).max(initial=0) <= 1e-5 * np.abs(b).max(initial=1)


@pytest.mark.parametrize(("case", "groups"), [("plain", N), ("plain", 1), *((case, K) for case in CASES)])
def test_it_is_jax_s(case: str, groups: int) -> None:
    """Value, residual and gradients of queries, keys, values and bias."""
    options = CASES[case]
    shapes = (B, T, N, H), (B, S, groups, H), (B, S, groups, H)
    x = [GENERATOR.standard_normal(shape).astype(np.float32) for shape in shapes]
    over: dict[str, Array] = {"bias": options["bias"]} if "bias" in options else {}
    held = {name: value for name, value in options.items() if name != "bias"}

    def theirs(q: Any, k: Any, v: Any, over: Any) -> Any:
        return jax.nn.dot_product_attention(q, k, v, **over, **held, return_residual=True)

    def ours(q: Any, k: Any, v: Any, over: Any) -> Any:
        return dot_product_attention(q, k, v, **over, **tensors(held), return_residual=True)

    def both(f: Any, lib: Any, *x: Any) -> Any:
        return *f(*x), *lib.grad(lambda *x: (f(*x)[0] ** 3).sum(), (0, 1, 2, 3))(*x)

    want = jax.jit(partial(both, theirs, jax), compiler_options=QUICKLY)(*x, over)
    got = both(ours, torch.func, *map(torch.from_numpy, x), tensors(over))
    blind = np.zeros((B, T, 1), bool)
    if "query_seq_lengths" in held:
        blind = (np.arange(T) >= held["query_seq_lengths"][:, None])[..., None]
    assert torch.equal(got[1].isneginf(), torch.from_numpy(blind).expand(B, T, N))
    for i, (a, b) in enumerate(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)):
        close(*(np.where(blind, 0, t) for t in (a, b)) if i == 1 else (a, b))


@pytest.mark.parametrize("case", ["plain", "causal", "bias without a batch", "bias of heads", "window"])
def test_an_example_is_as_good(case: str) -> None:
    x = [GENERATOR.standard_normal(shape).astype(np.float32) for shape in ((T, N, H), (S, K, H), (S, K, H))]
    for residual in (False, True):
        options = CASES[case] | {"return_residual": residual}
        want = jax.jit(partial(jax.nn.dot_product_attention, **options), compiler_options=QUICKLY)(*x)
        got = dot_product_attention(*map(torch.from_numpy, x), **tensors(options))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            close(a, b)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a mask of numbers": ({"mask": MASK.astype(np.float32)}, "boolean"),
    "an implementation": ({"implementation": "flash"}, "flash"),
    "heads that do not divide": ({"key": (B, S, 3, H), "value": (B, S, 3, H)}, "evenly"),
    "keys": ({"value": (B, S - 1, K, H)}, "N"),
    "features": ({"query": (B, T, N, H + 1)}, "K"),
    "rank": ({"query": (N, H)}, "query|q"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_jax_s_error(case: str) -> None:
    change, says = WRONG[case]
    shapes = {"query": (B, T, N, H), "key": (B, S, K, H), "value": (B, S, K, H)}
    shapes |= {name: value for name, value in change.items() if name in shapes}
    call: dict[str, Any] = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    call |= {name: value for name, value in change.items() if name not in shapes}
    with pytest.raises(ValueError, match=r"\w"):
        jax.nn.dot_product_attention(**call)
    with pytest.raises(ValueError, match=says):
        dot_product_attention(**tensors(call))


def test_no_gradient_flows_through_the_residual() -> None:
    q = torch.randn(T, N, H, requires_grad=True)
    residual = partial(dot_product_attention, return_residual=True)(q, q, q)[1]
    assert not residual.requires_grad


def test_the_signature_is_jax_s() -> None:
    ours, theirs = (inspect.signature(f).parameters for f in (dot_product_attention, jax.nn.dot_product_attention))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]
