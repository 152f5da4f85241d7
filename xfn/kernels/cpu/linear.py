"""Maps of many rows in float32, in C++ where its products are faster than torch's: see xfn/csrc/cpu/matmul.h."""

from .library import detail, swift

DETAIL, SWIFT = detail(), swift("linear")
