"""What programs took from xformers.utils."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def do_bench_cudagraph(fn: Callable[[], Any], rep: int = 20, grad_to_none: Sequence[Tensor] | None = None) -> float:
    """How many milliseconds a function takes in a CUDA graph, as Triton measures it."""
    from triton.testing import do_bench_cudagraph as measure

    took: float = measure(fn, rep=rep, grad_to_none=grad_to_none)
    return took
