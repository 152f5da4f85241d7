"""Watching which raw ops run, and on what."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    """Keeps the arguments of every xfn op that reaches a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "xfn":
            self.calls.append((func._opname, args))
        return func(*args, **(kwargs or {}))

    @property
    def counts(self) -> Counter[str]:
        return Counter(name for name, _ in self.calls)


def watch(f: Callable[[], Any]) -> Watch:
    seen = Watch()
    with seen:
        f()
    return seen
