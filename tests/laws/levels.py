"""``python -m tests.laws.levels decoding avx2 portable``: what a ``test_fuzz`` draws, on these sets of instructions.

It prints the set that was used for each. The reference, which takes most of the time, is asked once for them all; then
each set runs in a fork, for a process chooses one and keeps to it. ``--brief`` leaves the largest fifth of the problems
out: over patterns, they take three quarters of the time.
"""

import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from hypothesis import given

from .test_fuzz import FUZZ, Members, Problem, compare, decoding, problems, references
from .test_fuzz_rows import Rows, rows
from .test_fuzz_sparse import sparse_problems

LAWS: dict[str, tuple[Any, Members]] = {
    "attention": (problems(), Problem.family),
    "decoding": (decoding(), Problem.forward),
    "sparse": (sparse_problems(), Problem.family),
    "rows": (rows(), Rows.family),
}


def drawn(strategy: Any) -> list[Any]:
    """A law's problems."""
    found: list[Any] = []

    def keep(problem: Any) -> None:
        found.append(problem)

    FUZZ(given(strategy)(keep))()
    return found


def work(problem: Problem | Rows) -> int:
    """About how many products a problem takes, or of how many numbers it is."""
    if isinstance(problem, Rows):
        return sum(prod(shape) for _, shape in problem.shapes)
    (*_, M, H, K), (*_, N, _, V) = problem.shapes[0], problem.shapes[2]
    batch: tuple[int, ...] = torch.broadcast_shapes(*(shape[:-3] for shape in problem.shapes))
    return prod(batch) * M * H * N * (K + V)


def forked(run: Callable[[], None]) -> None:
    """Runs it in a copy of this process, which may not fail, let alone crash."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            sys.exit(f"a set of instructions ended with {status}")
        return
    status = 1
    try:
        run()
        sys.stdout.flush()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(status)


def main(law: str, *names: str, brief: bool = False) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # torch.empty gives NaN
    strategy, members = LAWS[law]
    found = sorted(drawn(strategy), key=work)
    asked = [(problem, references(problem, members)) for problem in found[: len(found) * 4 // 5 if brief else None]]

    def obeys(name: str) -> None:
        os.environ["XFN_ISA"] = name
        for problem, wanted in asked:
            compare(problem, members(problem, "cpu", problem.dtype), *wanted)
        from xfn.kernels.cpu.library import isa

        print(isa())

    for name in names:
        forked(partial(obeys, name))


if __name__ == "__main__":
    main(*(name for name in sys.argv[1:] if name != "--brief"), brief="--brief" in sys.argv)
