"""What a checkpoint calls a parameter, from where it is in the tree of a model.

    pre                    wrap_att.layer.norm          wrap_att.layer.sublayer
    post and deepnorm      wrap_att.norm                wrap_att.sublayer.layer
    reversible             f.net.norm                   f.net.sublayer

stand for the norm of a layer and for what it is around. Behind the last layer of a pre-norm model comes a norm, which
wraps the feed-forward once more: ``wrap_ff.norm`` and ``wrap_ff.sublayer.layer``.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...factory import Encoder
from ...factory.stack import Layers, Stack
from ...parts.attention.compositional import Compositional
from ...parts.attention.visual import Visual
from ...parts.feedforward.conv_mlp import ConvMLP
from ...parts.feedforward.fused_mlp import FusedMLP
from ...parts.feedforward.mlp import MLP
from ...parts.position.learned import Learned
from .parts import Projected, Within

ATTEND = {"k.weight": "E.weight", "v.weight": "F.weight", "conv.weight": "skip_connection.weight"}
WRAPS = {"attention": "wrap_att", "cross": "wrap_cross", "feedforward": "wrap_ff"}
TURNED = {"attention": "f.net", "feedforward": "g.net"}


PLACES: dict[type, dict[str, tuple[str, str]]] = {
    Visual: {
        "up": ("block.0", "point"), "near": ("block.2.conv0", "each"), "far": ("block.2.conv_spatial", "each"),
        "mix": ("block.2.conv1", "point"), "down": ("block.3", "point"),
    },
    Compositional: {
        **{name: (f"in_proj_container.{name}_proj", "") for name in "qkv"}, "out": ("out_proj", ""),
        "score": ("score_network", ""), "score.up": ("score_network.0", ""), "score.down": ("score_network.2", ""),
    },
    ConvMLP: {"up": ("conv_mlp.0", "point"), "mix": ("conv_mlp.1", "turned"), "down": ("conv_mlp.3", "point")},
}  # fmt: skip
"""Of parts whose maps are convolutions there, or have other names: the name of each map, and how its weight lies."""
FORMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "": (lambda t: t, lambda t: t),
    "framed": (lambda t: t.unsqueeze(0), lambda t: t.squeeze(0)),
    "point": (lambda t: t[..., None, None], lambda t: t[..., 0, 0]),
    "each": (lambda t: t.unsqueeze(1), lambda t: t.squeeze(1)),
    "turned": (lambda t: t.mT.unsqueeze(1).contiguous(), lambda t: t.squeeze(1).mT),
}


class Name(NamedTuple):
    """A parameter: its path in the tree, its name in a checkpoint, and how it lies there, one of ``FORMS``."""

    path: str
    name: str
    form: str = ""

    def out(self, t: Tensor) -> Tensor:
        """As the checkpoint has it."""
        return FORMS[self.form][0](t)

    def read(self, t: Tensor) -> Tensor:
        """As the tree has it."""
        return FORMS[self.form][1](t)


class Place(NamedTuple):
    """A layer: its stage, its number in it, and its name in the checkpoint."""

    stage: Layers
    at: int
    name: str
    ends: bool


def named(stack: Stack, paths: list[str], folder: str, alone: bool = False) -> Iterator[Name]:
    """The names of a stack's parameters; ``alone`` stands one layer, which has no number."""
    before = 0
    places: list[list[Place]] = []
    total = sum(stage.config.layers for stage in stack.stages)
    back = turned(stack)
    for stage in stack.stages:
        here = range(before, before + stage.config.layers)
        title = f"{folder}blocks." if back else folder
        places.append([
            Place(stage, i - before, folder.rstrip(".") if alone else f"{title}{i}", stack.normed and i == total - 1)
            for i in here
        ])  # fmt: skip
        before += stage.config.layers
    for path in paths:
        if path.startswith("norm."):
            end = places[-1][-1].name
            yield Name(path, f"{folder}{path}" if back else joined(end, f"wrap_ff.{path}"))
            continue
        group, rest = places[0], path
        if len(places) > 1:
            _, number, rest = path.split(".", 2)
            group = places[int(number)]
        yield _named(path, rest, group, back)


def joined(*names: str) -> str:
    """Names one behind the other."""
    return ".".join(name for name in names if name)


def turned(stack: Stack) -> bool:
    """Whether the layers are reversible."""
    return any(isinstance(stage.config, Encoder) and stage.config.reversible for stage in stack.stages)


def _named(path: str, rest: str, group: list[Place], back: bool) -> Name:
    step, _, inner = rest.partition(".")
    first = group[0]
    if step == "layers":
        number, part, leaf = inner.split(".", 2)
        place = group[int(number)]
        form = "" if part.endswith("_norm") else _moved(place, part, leaf)[1]
        return Name(path, _layer(place, part, leaf, back), form)
    if step == "patch":
        return Name(path, joined(first.name, f"patch_emb.1.{inner}"))
    if step == "position":
        if inner.startswith("projector."):
            return Name(path, joined(first.name, f"embedding_{inner}"))
        position = first.stage.position
        learned = isinstance(position.part if isinstance(position, Projected) else position, Learned)
        seat = {"word": "word_embeddings.weight", "position": "position_embeddings.weight"}
        leaf = {"position": "pos_emb", "token": "class_token"}[inner] if learned else seat[inner]
        title = "rev_enc_pose_encoding" if back else joined(first.name, "pose_encoding")
        return Name(path, f"{title}.{leaf}", "framed" if learned and inner == "position" else "")
    return Name(path, joined(first.name, rest))


def _layer(place: Place, part: str, leaf: str, back: bool) -> str:
    norm = part.endswith("_norm")
    part = part.removesuffix("_norm")
    pre = hasattr(place.stage.config.residual, "last")
    if back:
        outer = joined(place.name, TURNED[part])
        around, within = f"{outer}.norm", f"{outer}.sublayer"
    else:
        outer = joined(place.name, WRAPS[part])
        if part == "feedforward" and place.ends:
            outer += ".sublayer"
        around, within = (
            (f"{outer}.layer.norm", f"{outer}.layer.sublayer") if pre else (f"{outer}.norm", f"{outer}.sublayer.layer")
        )
    if norm:
        return f"{around}.{leaf}"
    return f"{within}.{_feedforward(place, leaf) if part == 'feedforward' else _attention(place, part, leaf)}"


def _moved(place: Place, part: str, leaf: str) -> tuple[str, str]:
    """The name of a leaf of a part whose names differ, and how it lies."""
    found: Any = next(s for s in place.stage.sublayers if s.name == part).part
    step, _, kind = leaf.rpartition(".")
    own = PLACES.get(type(found.part if isinstance(found, Within) else found), {})
    name, form = own.get(step, (step, ""))
    return f"{name}.{kind}" if name else kind, form if kind == "weight" else ""


def _attention(place: Place, part: str, leaf: str) -> str:
    sublayer = next(s for s in place.stage.sublayers if s.name == part)
    own = leaf.removeprefix("attend.")
    if own != leaf:
        return f"attention.{ATTEND.get(own, own)}"
    if not {"q", "k", "v"} <= sublayer.takes:
        return f"attention.{_moved(place, part, leaf)[0]}"
    step, _, rest = leaf.partition(".")
    return f"proj.{rest}" if step == "out" else f"in_proj_container.{step}_proj.{rest}"


def _feedforward(place: Place, leaf: str) -> str:
    part = place.stage.config.feedforward
    table = {"up.weight": "0.weight", "up.bias": "0.bias", "down.weight": "3.weight", "down.bias": "3.bias"}
    if isinstance(part, FusedMLP):
        table = {"up.weight": "0.weight", "up.bias": "1.bias", "down.weight": "2.weight", "down.bias": "3.bias"}
    return f"mlp.{table[leaf]}" if isinstance(part, MLP) else _moved(place, "feedforward", leaf)[0]


def canonical(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint by the names of ``wanted``, as far as it has them or there is something to stand for them."""
    found = dict(given)
    for name in wanted:
        for old in _older(name):
            if name not in found and old in found:
                found[name] = found.pop(old)
    for name in [name for name in found if name not in wanted and (_dead(name, wanted) or _again(name, found))]:
        del found[name]
    norms = []
    for name in (name for name in wanted if name not in found):
        if name.endswith("attention.features"):
            found[name] = wanted[name]
        elif name.endswith(("mlp.1.bias", "mlp.3.bias")) and name.replace("mlp.3", "mlp.1") in wanted:
            found[name] = torch.zeros_like(wanted[name])
        elif _ends(name) and any(sign in n for n in given for sign in _signs(name)):
            norms.append(name)
            found[name] = torch.full_like(wanted[name], float(name.endswith("weight")))
    if norms:
        warnings.warn(
            f"the checkpoint is of a model that lacks the norm behind its last layer: 1 and 0 stand for {norms}, "
            "and the result is normalised",
            stacklevel=4,
        )
    return found


def _ends(name: str) -> bool:
    """Whether it is of the norm behind the last layer."""
    return name.endswith(("wrap_ff.norm.weight", "wrap_ff.norm.bias", "encoders.norm.weight", "encoders.norm.bias"))


def _signs(name: str) -> list[str]:
    """What there is where that norm is not."""
    head, found, _ = name.partition("wrap_ff.norm")
    return [f"{head}wrap_ff.layer."] if found else ["encoders.blocks."]


def _older(name: str) -> Iterator[str]:
    if ".mlp.3." in name or name.startswith("mlp.3."):
        yield name.replace("mlp.3.", "mlp.2.")
    if "wrap_ff.sublayer.layer." in name:
        bare = name.replace("wrap_ff.sublayer.layer.", "wrap_ff.layer.")
        yield bare
        yield bare.replace("mlp.3.", "mlp.2.")


def _again(name: str, found: Mapping[str, Tensor]) -> bool:
    """Whether it is q's weight or bias, once more."""
    query = name.replace("k_proj.", "q_proj.").replace("v_proj.", "q_proj.")
    return query != name and query in found and torch.equal(found[name], found[query])


def _dead(name: str, wanted: Mapping[str, Tensor]) -> bool:
    """What old modules kept twice, or had and did not use."""
    steps = name.split(".")
    twice = {"mha", "cross_mha"} & set(steps) or "feedforward" in steps[:3] or {"position_ids", "inv_freq"} & set(steps)
    owner = name.partition("in_proj_container.")[0] if "in_proj_container." in name else name.rpartition("proj.")[0]
    unused = ("proj" in steps or "in_proj_container" in steps) and not any(
        n.startswith(f"{owner}proj.") for n in wanted
    )
    return bool(twice) or unused
