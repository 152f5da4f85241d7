"""Plain maps in C++, those of many rows in float32 by our own products where they are faster: see xfn/csrc/cpu/matmul.h."""

from .library import detail, swift

DETAIL, SWIFT = detail(), swift("linear")
