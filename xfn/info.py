"""``python -m xfn.info``: versions, which backends this machine has, or why not, and whether they compute what they
should: the self-test ends with status 1 where one does not."""

import importlib
import pkgutil
import platform
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from time import perf_counter

import torch
from torch import Tensor

from . import __version__, ops
from ._core.case import Case
from ._core.dispatch import OVERRIDE, module
from ._core.errors import Unsupported
from ._core.primitive import Primitive


def functions() -> Iterator[tuple[str, Primitive | None, Sequence[Case]]]:
    """Every module of ``xfn.ops`` that has cases: its name, the primitive that it defines, if any, and the cases."""
    for found in sorted(pkgutil.iter_modules(ops.__path__), key=lambda m: m.name):
        module = importlib.import_module(f"{ops.__name__}.{found.name}")
        if hasattr(module, "CASES"):
            primitive = next((v for n, v in vars(module).items() if isinstance(v, Primitive) and n.isupper()), None)
            yield found.name, primitive, module.CASES


def primitives() -> Iterator[tuple[Primitive, Sequence[Case]]]:
    """Every primitive, with the cases of its module."""
    for _, primitive, cases in functions():
        if primitive is not None:
            yield primitive, cases


def lines() -> Iterator[str]:
    """What there is to say, a line each."""
    yield f"xfn {__version__}, torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()}"
    devices = [f"cpu with {torch.get_num_threads()} threads"]
    devices += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield f"devices: {', '.join(devices)}"
    if OVERRIDE:
        yield f"XFN_BACKEND={OVERRIDE} is the backend of every call that names none"
    for primitive, _ in primitives():
        yield f"{primitive.name}, tried in this order:"
        for backend in primitive.backends:
            try:
                kernels = module(backend, primitive.name)
            except ImportError as error:
                yield f"    {backend:<10} no: {error}"
                continue
            has = [member.member for member in primitive.family if hasattr(kernels, member.member)]
            detail = f" ({kernels.DETAIL})" if hasattr(kernels, "DETAIL") else ""
            yield f"    {backend:<10} {' '.join(has)}{detail}"
        yield "    reference  everything, in O(M N) memory; only when named"


CLOSE = 1e-4
"""How far float32 may be from float64 in the self-test, in shares of the largest number: kernels are much nearer."""


def failures(backend: str, primitive: Primitive, cases: Sequence[Case], device: str) -> tuple[int, list[str]]:
    """How many cases a backend takes there, and those whose value or gradient in float32 is not the reference's."""
    taken, wrong = 0, []
    for case in cases:
        if "long" in case.tags:
            continue
        generator = torch.Generator().manual_seed(0)
        given = [torch.randn(case.shape(name), generator=generator).to(device) for name in case.shapes]
        try:
            got = derived(case, given, backend)
        except Unsupported:
            continue
        taken += 1
        want = derived(case, [t.double() for t in given], "reference")
        scale = max([1.0, *(t.abs().max().item() for t in want if t.numel())])
        if not all(torch.allclose(a.double(), b, 0, CLOSE * scale) for a, b in zip(got, want, strict=True)):
            wrong.append(f"{primitive.name}, {case}, by {backend} on {device}")
    return taken, wrong


def derived(case: Case, given: Sequence[Tensor], backend: str) -> list[Tensor]:
    """A case's values, −∞ taken for zero, and the gradients of the sum of their squares."""
    leaves = [t.requires_grad_() for t in given]
    values = [torch.where(y == -torch.inf, 0, y) for y in case.call(*leaves, backend=backend)]
    total = torch.stack([y.square().sum() for y in values]).sum()
    return [*values, *torch.autograd.grad(total, leaves, materialize_grads=True)]


def main() -> int:
    """Print it all; 1 if the self-test fails."""
    print("\n".join(lines()), flush=True)
    threads, start, count, wrong = torch.get_num_threads(), perf_counter(), 0, list[str]()
    torch.set_num_threads(1)  # cases are small
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for (primitive, cases), device in product(primitives(), devices):
        for backend in primitive.backends:
            taken, failed = failures(backend, primitive, cases, device)
            count, wrong = count + taken, wrong + failed
    seconds = perf_counter() - start
    torch.set_num_threads(threads)
    if wrong:
        print(f"self-test: WRONG in {len(wrong)} of {count} cases:", *wrong, sep="\n    ")
    else:
        print(f"self-test: {count} values and gradients are right, in {seconds:.1f} s")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
