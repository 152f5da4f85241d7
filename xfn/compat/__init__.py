"""Other libraries' functions under their own names; the page on them is docs/compat.md."""

from .checkpoint import checkpoint as checkpoint
from .checkpoint import list_operators as list_operators
