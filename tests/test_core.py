"""What everything hangs on: importing costs nothing, one variable chooses, and torch still has what is leant on."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as tree

import xfn
from xfn import info
from xfn._core import kernel
from xfn._core.case import Case
from xfn._core.errors import ShapeError
from xfn._core.pytree import pytree, static
from xfn._core.shapes import Signature, broadcast
from xfn.info import primitives


def python(program: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_importing_is_quick_and_brings_nothing_heavy(tmp_path: Path) -> None:
    """In seconds of the processor, best of five, from bytecode, as where xfn is installed; to look through what torch
    has allocated is not our time."""
    program = """
import gc, sys, time
import torch
gc.freeze()
before, start = set(sys.modules), time.process_time()
import xfn
took = time.process_time() - start
new = set(sys.modules) - before
print(took, any(m.split(".")[0] == "triton" or m.startswith("xfn.kernels.") or m == "xfn._C" for m in new))
"""
    bytecode = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    runs = [python(program, **bytecode).split() for _ in range(5)]
    assert min(float(took) for took, _ in runs) < 0.2
    assert {heavy for _, heavy in runs} == {"False"}


def test_one_variable_chooses_the_backend() -> None:
    program = """
import torch, xfn
from tests.watch import watch
q = torch.randn(3, 2, 4)
print(dict(watch(lambda: xfn.attention(q, q, q)).counts))
"""
    assert python(program, XFN_BACKEND="reference").strip() == "{}"
    assert python(program, XFN_BACKEND="tiled").strip() == "{'attention_forward': 1}"
    with pytest.raises(AssertionError, match="attention has no backend 'nonsense'"):
        python(program, XFN_BACKEND="nonsense")
    assert "XFN_BACKEND=tiled" in python(
        "import runpy; runpy.run_module('xfn.info', run_name='__main__')", XFN_BACKEND="tiled"
    )


def test_info_names_every_backend() -> None:
    text = "\n".join(info.lines())
    for primitive, _ in info.primitives():
        assert all(backend in text for backend in (primitive.name, *primitive.backends, "reference"))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (torch.autograd.function, "_SingleLevelFunction"),
        (torch._C._functorch, "set_single_level_autograd_function_allowed"),
        (torch._C._functorch, "get_single_level_autograd_function_allowed"),
        (torch._C._functorch, "set_inplace_requires_grad_allowed"),
        (torch._C, "_AutoDispatchBelowAutograd"),
        (torch._C, "_after_autograd_keyset"),
        (torch._C, "_DisableAutocast"),
        (torch.ops.aten.add.Tensor, "_op"),
        (torch.autograd.forward_ad, "_set_fwd_grad_enabled"),
        (torch._VF, "_unpack_dual"),
        (torch._VF, "_make_dual"),
        (torch._C, "_are_functorch_transforms_active"),
        (torch._C._functorch, "get_interpreter_stack"),
        (torch._C._functorch, "get_unwrapped"),
        (torch._C._functorch, "is_functorch_wrapped_tensor"),
        (torch._C._functorch, "maybe_get_level"),
    ],
)
def test_torch_has_the_private_names_that_the_rule_leans_on(owner: Any, name: str) -> None:
    assert hasattr(owner, name), f"torch {torch.__version__} took {name} away: read the head of {kernel.__file__}"


@pytree
class Pair:
    left: Any
    right: Any = None
    name: str = static(default="")


def test_leaves_are_declared_and_never_read_off_the_value() -> None:
    pair = Pair(torch.ones(2), None, "both")
    leaves, spec = tree.tree_flatten(pair)
    assert len(leaves) == 1
    again = tree.tree_unflatten([0], spec)
    assert (again.left, again.right, again.name) == (0, None, "both")
    assert spec != tree.tree_flatten(Pair(torch.ones(2), None, "other"))[1]
    assert torch.func.vmap(lambda pair: pair.left + 1)(pair).shape == (2,)
    with pytest.raises(AttributeError):
        pair.left = 3  # type: ignore[misc]


def test_a_signature_reads_letters() -> None:
    signature = Signature.parse("q M K, b? M|1 K ; key? 2 -> out M K, lse+ M")
    sizes, batch = signature.check({"q": torch.ones(4, 1, 2, 3), "b": torch.ones(5, 1, 3), "key": torch.ones(2)})
    assert (sizes, batch) == ({"M": 2, "K": 3}, (4, 5))
    assert [o.wide for o in signature.outputs] == [False, True]
    with pytest.raises(ShapeError, match=r"key \[\.\.\., 2\] has 2=3, but it must be 2"):
        signature.check({"q": torch.ones(2, 3), "key": torch.ones(3)})


@given(st.lists(st.lists(st.integers(0, 3), max_size=4).map(tuple), max_size=4))
def test_shapes_broadcast_as_torch_s_do(shapes: list[tuple[int, ...]]) -> None:
    try:
        want = tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        with pytest.raises(ShapeError, match="do not broadcast"):
            broadcast(shapes)
    else:
        assert broadcast(shapes) == want


def test_the_version_is_the_package_s() -> None:
    from importlib.metadata import version

    assert version("xfn") == xfn.__version__


@pytest.mark.parametrize("case", [case for _, cases in primitives() for case in cases], ids=str)
def test_a_case_runs_where_its_tensors_are(case: Case) -> None:
    """On another device than the CPU, here one that has shapes alone; laws may then run on any."""
    x = [torch.empty(case.shape(name), device="meta") for name in case.shapes]
    assert all(y.is_meta for y in case.call(*x))
