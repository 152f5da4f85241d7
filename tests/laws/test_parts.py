"""Every part × every field changed × every way to call it: what the names of its arguments promise, it keeps."""

import json
import math
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, func
from torch.utils import _pytree as tree

import xfn.parts
from xfn import attention, bias, random
from xfn._core.dims import Dims
from xfn._core.params import leaves
from xfn._core.params import tree as nested
from xfn.parts import catalogue, draws, honours, mixes

from ..cases import agree
from ..catalogue import (
    DIMS,
    LENGTH,
    M,
    Subject,
    at,
    changes,
    every_call,
    every_part,
    floating,
    kinds,
    loss,
    stack,
    variants,
)
from ..transforms import dot
from .test_derivatives import difference

KEY = random.key(3)

HELD = {"Favor": ("features",), "Ortho": ("q", "k")}
"""Into which, by design, not all of the gradient flows: features are drawn, and landmarks chosen."""


# A part is a value.


@every_part
def test_its_arguments_have_names_that_promise_something(subject: Subject) -> None:
    """Those at the head of the lines that explain them."""
    explained = re.findall(r"^    ((?:\w+ )+) ", xfn.parts.__doc__ or "", re.MULTILINE)
    assert {"q", "k", "v", "x", "bias"} <= (names := set(" ".join(explained).split()))
    assert subject.takes - {"params"} <= names


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_the_laws_change_every_number_and_choice(kind: type[Any]) -> None:
    changed = {f.name for part in variants(kind) for f in fields(kind) if getattr(part, f.name) != f.default}
    hints = get_type_hints(kind)
    assert changed >= {f.name for f in fields(kind) if changes(hints[f.name], f.default)}


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_a_field_of_another_kind_is_refused(kind: type[Any]) -> None:
    wrong: dict[Any, list[Any]] = {bool: [1, None], int: [1.5, True], float: [math.nan, True], str: [3]}
    for name, hint in get_type_hints(kind).items():
        for value in (object(), *wrong.get(hint, [])):
            with pytest.raises(TypeError, match=rf"^{kind.__name__}\.{name} is .*, but must be "):
                xfn.Encoder(DIMS, **{kind.__module__.split(".")[2]: kind(**{name: value})})


@every_part
def test_a_part_comes_back_from_json(subject: Subject) -> None:
    part = subject.part
    again = type(part)(**json.loads(json.dumps(asdict(part))))
    assert again == part
    assert hash(again) == hash(part)
    assert repr(again) == repr(part)


@every_part
def test_the_same_key_draws_the_same_parameters(subject: Subject) -> None:
    one, again, other = (subject.init(seed) for seed in (0, 0, 1))
    for a, b, c in zip(*map(tree.tree_leaves, (one, again, other)), strict=True):
        assert torch.equal(a, b)
        assert a.unique().numel() == 1 or not torch.equal(a, c)


@every_part
def test_parameters_own_their_storage_also_under_a_map(subject: Subject) -> None:
    """An optimiser writes to them in place."""
    keys = random.split(KEY, 3)
    init = lambda key: subject.part.init(key, DIMS)
    one, many = init(keys[1]), func.vmap(init)(keys)
    assert tree.tree_structure(one) == tree.tree_structure(many)
    for params in (one, many):
        every = tree.tree_leaves(params)
        assert all(t.is_floating_point() and t.is_contiguous() for t in every)
        assert len({t.untyped_storage().data_ptr() for t in every}) == len(every)
    for a, b in zip(tree.tree_leaves(one), tree.tree_leaves(many), strict=True):
        assert torch.equal(a, b[1])


# A batch is its examples.


@every_call()
def test_a_batch_is_its_examples(subject: Subject) -> None:
    params, data = subject.init(), subject.draw(4)
    for key, keys in ((KEY, random.split(KEY, 4)), (None, None)):
        each = lambda i, keys=keys: None if keys is None else keys[i]
        loop = stack([subject(params, at(data, i), each(i)) for i in range(4)])
        agree(subject(params, data, key), loop)
        square = tree.tree_map(lambda t: t.unflatten(0, (2, 2)), data)
        agree(tree.tree_map(lambda t: t.flatten(0, 1), subject(params, square, key)), loop)
        if keys is None:
            agree(func.vmap(subject, (None, 0))(params, data), loop)
        else:
            agree(subject(params, data, keys), loop)
            agree(func.vmap(subject, (None, 0, 0))(params, data, keys), loop)


@every_call()
def test_per_example_gradients_are_a_loop_of_gradients(subject: Subject) -> None:
    params, (floats, rest), keys = subject.init(), floating(subject.draw(3)), random.split(KEY, 3)

    def slope(both: Any, rest: Any, key: Tensor) -> Any:
        return func.grad(lambda both: loss(subject(both[0], {**both[1], **rest}, key)))(both)

    if not tree.tree_leaves((params, floats)):
        return
    loop = stack([slope((params, at(floats, i)), at(rest, i), keys[i]) for i in range(3)])
    mapped = func.vmap(lambda floats, rest, key: slope((params, floats), rest, key))(floats, rest, keys)
    agree(mapped, loop)
    many = stack([params] * 3)
    agree(func.vmap(lambda both, rest, key: slope(both, rest, key))((many, floats), rest, keys), loop)


@every_call()
def test_there_may_be_no_examples(subject: Subject) -> None:
    params, data = subject.init(), subject.draw(0)
    one = subject(params, at(subject.draw(1), 0), KEY)
    agree(subject(params, data, KEY), tree.tree_map(lambda t: t[None][:0], one))
    floats, rest = floating(data)
    slopes = func.grad(lambda both: loss(subject(both[0], {**both[1], **rest}, KEY)))((params, floats))
    assert not any(t.any() for t in tree.tree_leaves(slopes))


@every_call()
def test_arguments_are_not_touched(subject: Subject) -> None:
    params, data = subject.init(), subject.draw(2)
    given = tree.tree_leaves((params, data, KEY))
    kept = [(t.clone(), t._version) for t in given]
    y = subject(params, data, KEY)
    floats, rest = floating(data)
    func.grad(lambda both: loss(subject(both[0], {**both[1], **rest}, KEY)))((params, floats))
    assert all(torch.equal(t, was) and t._version == n for t, (was, n) in zip(given, kept, strict=True))
    agree(subject(params, data, KEY), y, 0.0)


# Who sees whom.


def length(subject: Subject, name: str) -> int:
    """Where the length of an argument stands; of the result it stands where it does in x, or in q."""
    return LENGTH[name] if name != "out" else LENGTH["q" if "q" in subject.takes else "x"]


def result(y: Any) -> Any:
    """Without the losses beside it."""
    return y[0] if isinstance(y, tuple) and isinstance(y[1], dict) else y


def loud(data: dict[str, Any]) -> dict[str, Any]:
    """Ten times as large."""
    return {n: 10 * t if n in LENGTH else t for n, t in data.items()}


def mixed(data: dict[str, Any], other: dict[str, Any], where: Tensor) -> dict[str, Any]:
    """The data, at these places of each example ``[..., M]`` that of the other."""
    swap = lambda n: torch.where(where.reshape(*where.shape, *(1,) * (-1 - LENGTH[n])), other[n], data[n])
    return {n: swap(n) if n in LENGTH else t for n, t in data.items()}


@every_call(lambda subject: subject.way == "causal")
def test_the_future_cannot_change_the_past(subject: Subject) -> None:
    """Not in one bit, whatever is drawn."""
    params, data, other = subject.init(), subject.draw(2), loud(subject.draw(2, seed=1))
    for key in (None, KEY):
        y = result(subject(params, data, key))
        for t in range(1, M):
            where = (torch.arange(M) >= t).expand(2, M)
            changed = result(subject(params, mixed(data, other, where), key))
            past = lambda y, t=t: y.narrow(length(subject, "out"), 0, t)
            assert torch.equal(past(y), past(changed))


@pytest.mark.parametrize("kind", catalogue("attention").values(), ids=lambda kind: kind.__name__)
def test_what_mixes_its_queries_says_so(kind: type[Any]) -> None:
    """Else a query is given the same whatever those beside it are, and a causal model may look across by it."""
    takes, found = honours(kind()), False
    if not takes & {"k", "context"}:
        return
    for part in variants(kind):
        subject = Subject("attention", part, "plain" if "k" in takes else "across")
        params, data, other = subject.init(), subject.draw(2), loud(subject.draw(2, seed=1))
        asks = "q" if "q" in takes else "x"
        beside = torch.cat([data[asks][:, :1], other[asks][:, 1:]], 1)
        y, changed = (subject(params, {**data, asks: x})[:, 0] for x in (data[asks], beside))
        found |= not torch.equal(y, changed)
    assert found == mixes(kind())


@every_call(lambda subject: subject.way == "causal")
def test_no_gradient_flows_from_the_past_to_the_future(subject: Subject) -> None:
    params, (floats, rest) = subject.init(), floating(subject.draw())
    for t in (1, 5, M - 1):
        past = lambda floats, t=t: loss(
            result(subject(params, {**floats, **rest}, KEY)).narrow(length(subject, "out"), 0, t)
        )
        for name, slope in func.grad(past)(floats).items():
            assert not slope.narrow(LENGTH[name], t, M - t).any()


def seen(subject: Subject, data: dict[str, Any]) -> Tensor:
    """Which keys are kept: ``[..., N]``."""
    found: Tensor = data["kept"] if "kept" in data else data["bias"].terms[0].tensor.flatten(-3)
    return found


@every_call(lambda subject: subject.way == "padded")
def test_padding_does_not_matter(subject: Subject) -> None:
    """Where a token is kept, those that are not change no bit of the result, and get no gradient."""
    params, data, other = subject.init(), subject.draw(3), loud(subject.draw(3, seed=1))
    kept = seen(subject, data)
    assert not kept.all(-1).any()
    at_kept = lambda y: y.movedim(length(subject, "out"), kept.dim() - 1)[kept]
    for key in (None, KEY):
        y = result(subject(params, data, key))
        changed = result(subject(params, mixed(data, other, ~kept), key))
        assert torch.equal(at_kept(y), at_kept(changed))
    floats, rest = floating(data)
    slopes = func.grad(lambda floats: loss(at_kept(result(subject(params, {**floats, **rest})))))(floats)
    for name, slope in slopes.items():
        assert not slope.movedim(LENGTH[name], kept.dim() - 1)[~kept].any()


@every_call(lambda subject: subject.way == "padded")
def test_where_nothing_is_kept_nothing_breaks(subject: Subject) -> None:
    params, data = subject.init(), subject.draw(2)
    none = torch.zeros(2, M, dtype=torch.bool)
    data |= {"kept": none} if "kept" in data else {"bias": bias.dense(none[..., None, None, :])}
    floats, rest = floating(data)
    f = lambda floats: result(subject(params, {**floats, **rest}))
    slopes = func.grad(lambda floats: loss(f(floats)))(floats)
    assert all(t.isfinite().all() for t in tree.tree_leaves((f(floats), slopes)))


@dataclass(frozen=True)
class Leaky:
    """Says that it honours a bias and padding, and honours neither."""

    def init(self, key: Tensor, dims: Dims) -> dict[str, Any]:
        return {}

    def apply(
        self, params: Any, q: Tensor, k: Tensor, v: Tensor, bias: bias.Bias, kept: Tensor | None = None, *,
        key: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return attention(q, k, v) + (0 if key is None else random.uniform(key, dtype=q.dtype))


def test_who_breaks_a_promise_is_found() -> None:
    for law, way in (
        (test_the_future_cannot_change_the_past, "causal"),
        (test_no_gradient_flows_from_the_past_to_the_future, "causal"),
        (test_padding_does_not_matter, "padded"),
        (test_a_batch_is_its_examples, "plain"),
    ):
        with pytest.raises(AssertionError):
            law(Subject("attention", Leaky(), way))


# Training is where there is a key.


@every_call()
def test_a_part_that_says_it_draws_nothing_needs_no_key(subject: Subject) -> None:
    params, data = subject.init(), subject.draw(2)
    if not draws(subject.part):
        agree(subject(params, data, KEY), subject(params, data), 0.0)


@every_call()
def test_without_a_key_nothing_is_drawn(subject: Subject) -> None:
    params, data = subject.init(), subject.draw(2)
    y = subject(params, data)
    agree(subject(params, data), y, 0.0)
    if not hasattr(subject.part, "p"):
        return
    assert "key" in subject.takes
    quiet = replace(subject, part=replace(subject.part, p=0.0))
    agree(quiet(params, data), y, 0.0)
    if subject.draws and result(y).any():
        one, other = (result(subject(params, data, random.key(seed))) for seed in (1, 2))
        assert not torch.equal(one, result(y))
        assert not torch.equal(one, other)


# Numbers.


@every_call()
def test_the_result_has_the_dtype_of_the_data(subject: Subject) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        params, data = subject.init(dtype=dtype), subject.draw(2, dtype=dtype)
        y = result(subject(params, data, KEY))
        assert all(t.dtype == dtype and t.isfinite().all() for t in tree.tree_leaves(y))


@every_call()
def test_derivatives_are_differences(subject: Subject) -> None:
    """Of the first order in both modes, and of the second in two nestings; into parameters and data at once."""
    (floats, rest), params = floating(subject.draw()), leaves(subject.init())
    held = HELD.get(type(subject.part).__name__, ())
    given = params | floats
    names = [name for name in given if name not in held]
    x, every = tuple(given[name] for name in names), tuple(range(len(names)))
    t = tuple(torch.randn_like(v) for v in x)
    if not x:
        return

    def scalar(*x: Tensor) -> Tensor:
        now = given | dict(zip(names, x, strict=True))
        data = {name: now[name] for name in floats} | rest
        return loss(subject(nested({name: now[name] for name in params}), data, KEY))

    slope = func.grad(scalar, every)
    (want,) = difference(lambda *x: (scalar(*x),), x, t)
    agree(func.jvp(scalar, x, t)[1], want, 1e-8)
    agree(dot(slope(*x), t), want, 1e-8)
    bend = difference(slope, x, t)
    agree(func.jvp(slope, x, t)[1], bend, 1e-7)
    agree(func.grad(lambda *x: dot(slope(*x), t), every)(*x), bend, 1e-7)


@every_call(lambda subject: {"q", "v"} <= subject.takes and subject.way == "plain")
def test_heads_may_share_keys(subject: Subject) -> None:
    params, data = subject.init(), subject.draw(2)
    shared = {n: data[n][..., :1, :] for n in "kv"}
    copied = {n: t.expand(*t.shape[:-2], DIMS.heads, -1) for n, t in shared.items()}
    agree(subject(params, {**data, **shared}, KEY), subject(params, {**data, **copied}, KEY))
