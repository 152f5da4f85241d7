"""What numbers alone tell is made once, and outside of whatever transform is open when it is asked for."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

from torch.compiler import is_compiling

from .levels import modes

P = ParamSpec("P")
T = TypeVar("T")


KEPT = 16
"""Constants of one kind that are remembered: of a few parts, for a few lengths."""


def constant(make: Callable[P, T]) -> Callable[P, T]:
    """``make``, a function of values that have a hash, remembering the last of what it made; nobody is to write to it.

    Levels of torch.func, tapes, autocast and inference belong to a thread, so another one sees none of them. What is
    compiled, and what runs in a mode that may replace tensors, makes its own.
    """

    @lru_cache(maxsize=KEPT)
    def once(*args: P.args, **named: P.kwargs) -> T:
        with ThreadPoolExecutor(1) as outside:
            return outside.submit(make, *args, **named).result()

    @wraps(make)
    def constant(*args: P.args, **named: P.kwargs) -> T:
        if is_compiling() or modes():
            return make(*args, **named)
        return once(*args, **named)  # type: ignore[arg-type]

    return constant
