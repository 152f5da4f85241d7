"""``python -m xfn.info``: versions, and which backends this machine has, or why not."""

import importlib
import pkgutil
import platform
from collections.abc import Iterator, Sequence

import torch

from . import __version__, ops
from ._core.case import Case
from ._core.dispatch import OVERRIDE, module
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


if __name__ == "__main__":
    print("\n".join(lines()))
