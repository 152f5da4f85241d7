"""Plain maps in C++, those of many rows in float32 by our own products where that is faster: xfn/csrc/cpu/matmul.h."""

from .library import detail, swift

DETAIL, SWIFT = detail(), swift("linear")
