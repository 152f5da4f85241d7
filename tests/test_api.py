"""The public names and their signatures are those of api.txt: what users write today, they may write tomorrow. Those of
``xfn.compat`` are other libraries' own.

Where a change is meant: ``python -m tests.test_api > tests/api.txt``, and a line in CHANGELOG.md.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from tests.test_house import PUBLIC
from xfn import random
from xfn.parts import catalogue

KEPT = Path(__file__).with_name("api.txt")


def lines() -> Iterator[str]:
    """A line for every public function, class and part: its name, and the names and defaults of what it takes."""
    parts = {
        f"xfn.parts.{folder}.{name}": kind
        for folder in ("attention", "feedforward", "position", "residual")
        for name, kind in catalogue(folder).items()
    }
    for title, thing in sorted({**PUBLIC, **parts}.items()):
        if callable(thing) and ".compat." not in title:
            yield f"{title}{taken(thing)}"


def taken(thing: object) -> str:
    """What it takes, without annotations; nothing of one that says nothing."""
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return ""
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return re.sub(r"<function (\w+) at \w+>", r"\1", str(inspect.Signature(bare)))


def test_the_public_names_are_those_that_were() -> None:
    now, before = list(lines()), KEPT.read_text().splitlines()
    gone, new = sorted({*before} - {*now}), sorted({*now} - {*before})
    assert not gone, f"gone, or with other arguments: {gone}\n{__doc__}"
    assert not new, f"new: {new}\n{__doc__}"


def test_keys_are_made_and_used_by_the_names_that_were() -> None:
    assert {"key", "split", "fold_in", "uniform", "normal", "bernoulli", "randint", "permutation"} <= set(vars(random))


if __name__ == "__main__":
    print("\n".join(lines()))
