"""Configs, and the parts in them, are checked when they are made."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
from torch import Tensor

import xfn
from xfn.factory import Encoder, Patch, Simplicial
from xfn.parts.attention.dot_product import DotProduct

DIMS = xfn.Dims(model=8, heads=2, length=6)


@pytest.mark.parametrize(
    ("field", "value"),
    [("layers", 0), ("layers", True), ("causal", 1), ("attention", DotProduct), ("position", "sine"), ("p", 2.0),
     ("weights", "vif"), ("weights", ["vit"]), ("dims", 8), ("reversible", None), ("attention", None),
     ("feedforward", None), ("residual", None), ("patch", {"kernel": 2}), ("simplicial", 2), ("layers", 2.0)],
)  # fmt: skip
def test_a_config_is_checked_when_it_is_made(field: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^Encoder\.{field} is |no scheme|^p="):
        replace(Encoder(DIMS), **{field: value})


@pytest.mark.parametrize("given", [{"kernel": 0}, {"kernel": "2"}, {"kernel": 2.0}, {"kernel": (2, 2, 2)},
                                   {"kernel": 2, "stride": (1, 0)}, {"kernel": 2, "padding": -1},
                                   {"kernel": 2, "channels": 0}])  # fmt: skip
def test_patches_are_checked_when_they_are_made(given: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^Patch\.{list(given)[-1]} is .*, but must be "):
        Patch(**given)


def test_lists_are_pairs() -> None:
    assert Patch([2, 3], [1, 1]) == Patch((2, 3), (1, 1))


@pytest.mark.parametrize("given", [{"L": 0}, {"L": 2.0}, {"L": 2, "temperature": 0.0}])
def test_simplices_are_checked_when_they_are_made(given: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^Simplicial\."):
        Simplicial(**given)


def test_a_part_of_ones_own_is_checked_without_a_line() -> None:
    @dataclass(frozen=True)
    class Clipped:
        limit: float = math.inf

        def init(self, key: Tensor, dims: xfn.Dims) -> dict[str, Tensor]:
            return {}

        def apply(self, params: Any, x: Tensor) -> Tensor:
            return x.clamp(max=self.limit)

    assert Encoder(DIMS, attention=Clipped()).attention.limit == math.inf
    with pytest.raises(TypeError, match=r"^Clipped\.limit is '3', but must be a number$"):
        Encoder(DIMS, attention=Clipped("3"))


def test_both_halves_are_checked_when_they_are_made() -> None:
    with pytest.raises(TypeError, match=r"^Transformer\.decoder is None, but must be Decoder or a list, each of it De"):
        xfn.Transformer(Encoder(DIMS), None)
    with pytest.raises(TypeError, match=r"^Transformer\.encoder is Decoder\("):
        xfn.Transformer(xfn.Decoder(DIMS), Encoder(DIMS))


@pytest.mark.parametrize("model", [None, 0, 8.0, True, "8"])
def test_a_model_has_a_width(model: Any) -> None:
    with pytest.raises(ValueError, match=f"Dims.model is {model!r}, but must be a positive integer"):
        xfn.Dims(model)
