"""What comes with Python to read, byte by byte: its prose, which is what ``help`` says, and its sources.

text: is this prose or code? retrieval: are two extracts of one topic? Documents of the test are in no training.
"""

import sysconfig
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

from benchmarks.lra.draws import Draws

if TYPE_CHECKING:
    from benchmarks.lra.tasks import Example, Sizes

EACH = 4
"""One document of so many is for the test, in the order of their lengths, so that each side has long ones."""


@cache
def documents(code: bool, test: bool) -> tuple[bytes, ...]:
    """One side's documents, the longest first."""
    found = [text.encode() for text in topics.values()]
    if code:
        found = [path.read_bytes() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    each = sorted(set(found), key=lambda text: (-len(text), text))  # some systems have a file under two names
    return tuple(text for i, text in enumerate(each) if (i % EACH == EACH - 1) == test)


@cache
def joined(code: bool, test: bool) -> bytes:
    return b"\n\n".join(documents(code, test))


def text(draws: Draws, sizes: "Sizes", test: bool) -> "Example":
    label = draws.within(0, 1)
    return (extract(draws, joined(bool(label), test), draws.within(sizes.length // 2, sizes.length)),), label


def retrieval(draws: Draws, sizes: "Sizes", test: bool) -> "Example":
    """Of a length that is drawn first, so that it says nothing: one from a first half, one from a second half."""
    n, label = draws.within(sizes.length // 8, sizes.length // 2), draws.within(0, 1)
    first, second = draws.some(2, [topic for topic in documents(False, test) if len(topic) >= 2 * n])
    second = first if label else second
    return (extract(draws, first[: len(first) // 2], n), extract(draws, second[len(second) // 2 :], n)), label


def extract(draws: Draws, document: bytes, n: int) -> list[int]:
    """``n`` bytes from anywhere, as tokens."""
    start = draws.within(0, len(document) - n)
    return [byte + 1 for byte in document[start : start + n]]
