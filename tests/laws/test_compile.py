"""Every transform inside one compiled graph equals itself outside, but for what the ledger names."""

import subprocess
import sys

import pytest
import torch
from torch import func

from xfn._core.primitive import Lean
from xfn.info import functions

from ..cases import Subject, agree, subjects, tiny
from ..ledger import CANNOT_COMPILE, COMPILES_ANEW, compiled
from ..transforms import LONG, TRANSFORMS, Model, Transform, grad, jvp_grad, loss, vmap_grad

COMPILABLE = [t for t in TRANSFORMS if t.__name__ not in CANNOT_COMPILE and t not in LONG]
FIRST = {op: next(Subject(op, case, None) for case in cases if tiny(case)) for op, _, cases in functions()}
OPAQUE = [FIRST[op] for op, primitive, _ in functions() if primitive is not None and not isinstance(primitive, Lean)]
"""Whose every derivative is an op of its own; others are, beyond the first, plain torch to a compiler. What compiles is
the family, which all share: the first of them meets every transform, the others meet them by turns."""
first = pytest.mark.parametrize("subject", FIRST.values(), ids=str)


TURNS = [(s, t) for i, t in enumerate(COMPILABLE) for s in (OPAQUE[0], OPAQUE[1 + i % (len(OPAQUE) - 1)])]


@pytest.mark.parametrize(("subject", "transform"), TURNS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_every_transform_compiles(subject: Subject, transform: Transform) -> None:
    at = subject.point
    agree(compiled(transform, subject, at, "aot_eager"), transform(subject, at))


MADE = [(s, (grad, vmap_grad, jvp_grad)[i % 3]) for i, s in enumerate(FIRST.values())]


@pytest.mark.parametrize(("subject", "transform"), MADE, ids=lambda value: getattr(value, "__name__", str(value)))
def test_code_is_made_of_it(subject: Subject, transform: Transform) -> None:
    at = subject.point
    agree(compiled(transform, subject, at, "inductor"), transform(subject, at))


@subjects(lambda case: bool({"tiny", "compiled"} & case.tags))
def test_cases_compile(subject: Subject) -> None:
    """Forward, backward and their tangents, in one graph."""
    at = subject.point
    agree(compiled(jvp_grad, subject, at, "aot_eager"), jvp_grad(subject, at))


@first
def test_a_compiled_op_in_a_training_step(subject: Subject) -> None:
    """Compiled on its own and differentiated from outside, as a module in a training loop is."""
    step = torch.compile(loss(subject), fullgraph=True)
    x = tuple(v.requires_grad_() for v in subject.draw())
    agree(torch.autograd.grad(step(*x), x), torch.autograd.grad(loss(subject)(*x), x))


@first
def test_a_compiled_ensemble(subject: Subject) -> None:
    models = [Model(subject, subject.draw(seed)) for seed in range(3)]
    state = func.stack_module_state(models)
    call = func.vmap(lambda state: func.functional_call(models[0], state, (torch.tensor(0.5),)))
    agree(torch.compile(call, fullgraph=True)(state), call(state))


@first
def test_dynamic_shapes_compile_once(subject: Subject) -> None:
    torch._dynamo.utils.counters.clear()
    slope = func.grad(loss(func.vmap(subject)))
    step = torch.compile(slope, fullgraph=True, dynamic=True)
    for examples in (7, 8, 9):  # no other dim has these sizes, which Dynamo would take for one and the same
        x = subject.draw(examples=examples)
        agree(step(*x), slope(*x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (3 if subject.op in COMPILES_ANEW else 1)


def test_the_ledger_is_true() -> None:
    """Plain softmax code still cannot; strike the entry out when this fails."""
    run = subprocess.run([sys.executable, "-W", "ignore", "-m", "tests.ledger"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = dict(line.split() for line in run.stdout.splitlines())
    assert found == dict.fromkeys(CANNOT_COMPILE, "torch._dynamo.exc")
