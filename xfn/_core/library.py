"""A compiled library beside the package: what it says of itself, or a sentence that tells why it cannot be used."""

import ctypes
import struct
from pathlib import Path

from .. import __version__


def texts(path: Path, build: str, *symbols: str) -> list[str]:
    """What functions of a library return, which must be of this version; ``build``: how to have one."""
    if not path.exists():
        raise ImportError(f"{path.name} is not there; {build}")
    if not _whole(path):
        raise ImportError(f"{path.name} is cut short; {build}")
    try:
        library = ctypes.CDLL(str(path))
        made, *found = (_text(library, symbol) for symbol in ("xfn_version", *symbols))
    except (OSError, AttributeError) as error:
        raise ImportError(f"{path.name} does not load ({str(error).splitlines()[0]}); {build}") from error
    if made != __version__:
        raise ImportError(f"{path.name} is of xfn {made}, and this is {__version__}; {build}")
    return found


def _whole(path: Path) -> bool:
    """Whether the table of sections, the last thing in an ELF file, is there: the loader dies of half a file."""
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or head[:5] != b"\x7fELF\x02":
        return True  # no such file, as the loader can tell
    (table,), (size, count) = struct.unpack_from("=Q", head, 40), struct.unpack_from("=HH", head, 58)
    return bool(table + size * count <= path.stat().st_size)


def _text(library: ctypes.CDLL, symbol: str) -> str:
    function = getattr(library, symbol)
    function.restype = ctypes.c_char_p
    text: bytes = function()
    return text.decode()
