"""Dicts that name a mechanism, and the parts of xfn that they mean."""

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..._core.dims import Dims
from ...bias import Bias, causal
from ...ops.linear import init_linear, linear
from ...ops.rotary import rotary
from ...parts import honours
from ...parts.attention.blocksparse import Blocksparse
from ...parts.attention.compositional import Compositional
from ...parts.attention.dot_product import DotProduct
from ...parts.attention.favor import Favor
from ...parts.attention.fourier_mix import FourierMix
from ...parts.attention.global_tokens import GlobalTokens
from ...parts.attention.lambda_layer import LambdaLayer
from ...parts.attention.linformer import Linformer
from ...parts.attention.local import Local
from ...parts.attention.nystrom import Nystrom
from ...parts.attention.ortho import Ortho
from ...parts.attention.pooling import Pooling
from ...parts.attention.random_pattern import RandomPattern
from ...parts.attention.visual import Visual
from ...parts.feedforward.conv_mlp import ConvMLP
from ...parts.feedforward.fused_mlp import FusedMLP
from ...parts.feedforward.mlp import MLP
from ...parts.feedforward.moe import MixtureOfExperts
from ...parts.position.learned import Learned
from ...parts.position.sine import Sine
from ...parts.position.vocab import Vocab
from ...random import fold_in

KNOWN = {"name", "dim_model", "num_heads", "seq_len", "to_seq_len", "dim_head", "causal", "dim_features"}
"""What many mechanisms are told, whether or not they need it."""


@dataclass(frozen=True)
class Kind:
    """A part, and by which names its fields go; ``fixed`` turns a value into the field's."""

    part: Callable[..., Any]
    fields: Mapping[str, str]
    fixed: Mapping[str, Callable[[Any], Any]]


def kind(part: Callable[..., Any], fixed: Mapping[str, Callable[[Any], Any]] | None = None, **fields: str) -> Kind:
    """A :class:`Kind` of those fields."""
    return Kind(part, fields, fixed or {})


def activation(name: Any) -> str:
    """The name of an activation; None is the identity."""
    return "identity" if name is None else str(getattr(name, "value", name)).lower()


ATTENTION = {
    "scaled_dot_product": kind(DotProduct, dropout="p"),
    "linformer": kind(Linformer, dropout="p", k="rank"),
    "nystrom": kind(
        Nystrom, {"use_razavi_pinverse": lambda v: not v}, dropout="p", num_landmarks="landmarks",
        use_razavi_pinverse="exact", pinverse_original_init="original_init", inv_iterations="iterations",
        conv_kernel_size="kernel",
    ),
    "favor": kind(
        Favor, {"iter_before_redraw": bool}, dropout="p", dim_features="features", iter_before_redraw="redraw",
        feature_map_type="feature_map", feature_map="feature_map",
    ),
    "fourier_mix": kind(FourierMix, dropout="p"),
    "blocksparse": kind(
        Blocksparse, {"layout": lambda v: v.tolist()}, dropout="p", layout="layout", block_size="block"
    ),
    "global": kind(
        GlobalTokens, {"attention_query_mask": lambda v: v.flatten().nonzero().flatten().tolist()}, dropout="p",
        attention_query_mask="tokens",
    ),
    "local": kind(Local, dropout="p", window_size="window", causal="causal"),
    "random": kind(RandomPattern, dropout="p", r="density"),
    "lambda": kind(LambdaLayer, dropout="p"),
    "compositional": kind(
        Compositional, dropout="p", num_rules="rules", dim_selection="selection", q_compose="q_compose",
        use_separate_proj_weight="separate", bias="bias",
    ),
    "orthoformer": kind(
        Ortho, {"landmark_selection": lambda v: str(getattr(v, "value", v))}, dropout="p", num_landmarks="landmarks",
        landmark_selection="selection", subsample_fraction="subsample",
    ),
    "pooling": kind(Pooling, pool_size="size"),
    "visual": kind(Visual),
}  # fmt: skip
FEEDFORWARD = {
    name: kind(part, {"activation": activation}, dropout="p", activation="activation",
               hidden_layer_multiplier="multiplier", **more)
    for name, part, more in (
        ("MLP", MLP, {"bias": "bias"}),
        ("FusedMLP", FusedMLP, {"bias": "bias"}),
        ("Conv2DFeedforward", ConvMLP, {}),
        ("MixtureOfExperts", MixtureOfExperts, {"number_of_experts": "experts"}),
    )
}  # fmt: skip
POSITION = {
    "vocab": kind(Vocab, dropout="p", vocab_size="vocab"),
    "learnable": kind(Learned, add_class_token="token"),
    "sine": kind(Sine),
}


def made(folder: Mapping[str, Kind], what: str, given: Mapping[str, Any], ignored: list[str], **more: Any) -> Any:
    """The part that a dict means; what of it means nothing is added to ``ignored``."""
    name = str(given.get("name"))
    if name not in folder:
        raise KeyError(f"no {what} is called {name!r}; there are {', '.join(folder)}")
    found = folder[name]
    fields = dict(more)
    for field, value in given.items():
        if field in found.fields:
            if value is not None or field == "activation":
                fields[found.fields[field]] = found.fixed.get(field, lambda v: v)(value)
        elif field not in KNOWN and value is not None and (field, value) != ("dropout", 0):
            ignored.append(f"{what}.{field}")
    return found.part(**fields)


def attention(given: Mapping[str, Any], ignored: list[str]) -> tuple[Any, bool]:
    """The part that attends, and whether it is causal."""
    past = bool(given.get("causal"))
    if given.get("name") == "nystrom" and past:
        ignored.append("attention.name='nystrom' (it has no causal form: exact attention stands in for it)")
        ignored += [f"attention.{name}" for name in given if name not in {*KNOWN, "dropout"}]
        return DotProduct(p=given.get("dropout") or 0.0), True
    if given.get("name") == "compositional":
        score = "product" if given.get("qk_rule") else "mlp" if given.get("nonlinear") else "linear"
        rest = {name: value for name, value in given.items() if name not in ("qk_rule", "nonlinear")}
        return made(ATTENTION, "attention", rest, ignored, score=score), past
    part = made(ATTENTION, "attention", given, ignored)
    if isinstance(part, Local) and past:
        part = Local(given.get("window_size", 5) + 1, True, part.p)
    return part, past


@dataclass(frozen=True)
class Within:
    """A part whose q and k are turned before they meet, which is causal of its own, or which is told of padding.

    It takes what the part takes; padding, which it cannot honour, it ignores, with a warning.
    """

    part: Any
    turned: bool = False
    past: bool = False

    def __post_init__(self) -> None:
        part, takes = self.part, honours(self.part)
        if self.past and not takes & {"bias", "causal"}:
            raise ValueError(f"{type(part).__name__} takes no bias, so it cannot be causal")
        own = inspect.signature(part.apply)
        deaf = not takes & {"bias", "kept"}

        @functools.wraps(part.apply)
        def apply(params: Any, *given: Tensor, **asked: Any) -> Tensor:
            if self.turned:
                q, k, *rest = given
                given = (*rotary(q, k), *rest)
            if self.past and "bias" in takes:
                asked["bias"] = Bias.of(asked.get("bias")) + causal()
            elif self.past:
                asked["causal"] = True
            if deaf and asked.pop("kept", None) is not None:
                warnings.warn(f"{type(part).__name__} looks at all tokens: the input mask is ignored", stacklevel=2)
            return part.apply(params, *given, **asked)  # type: ignore[no-any-return]

        kept = [inspect.Parameter("kept", inspect.Parameter.KEYWORD_ONLY, default=None)] if deaf else []
        apply.__signature__ = own.replace(parameters=[*own.parameters.values(), *kept])  # type: ignore[attr-defined]
        object.__setattr__(self, "apply", apply)

    def __reduce__(self) -> Any:
        return Within, (self.part, self.turned, self.past)

    def init(self, key: Tensor, dims: Dims) -> Any:
        """The part's own parameters."""
        return self.part.init(key, dims)


@dataclass(frozen=True)
class Projected:
    """Positions of another width than the model's, and a linear map from the one to the other."""

    part: Any
    width: int

    def __post_init__(self) -> None:
        @functools.wraps(self.part.apply)
        def apply(params: Any, *given: Tensor, **asked: Any) -> Tensor:
            own = {name: t for name, t in params.items() if name != "projector"}
            return linear(params["projector"], self.part.apply(own, *given, **asked))

        object.__setattr__(self, "apply", apply)

    def __reduce__(self) -> Any:
        return Projected, (self.part, self.width)

    def init(self, key: Tensor, dims: Dims) -> dict[str, Any]:
        """Those of the part, and the map."""
        own = self.part.init(fold_in(key, 0), replace(dims, model=self.width))
        return {**own, "projector": init_linear(fold_in(key, 1), self.width, dims.model)}


def square(count: int) -> int:
    """The side of a square of so many places."""
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"{count} places do not lie on a square: pass an image [batch, channels, height, width]")
    return side
