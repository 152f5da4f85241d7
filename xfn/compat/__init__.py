"""Other libraries' functions under their own names; the page on them is docs/compat.md."""

from importlib.util import find_spec

import torch

from .checkpoint import checkpoint as checkpoint
from .checkpoint import list_operators as list_operators


def _is_triton_available() -> bool:
    return torch.cuda.is_available() and find_spec("triton") is not None
