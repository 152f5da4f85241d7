// Which instruction set this process uses, and its kernels.
#pragma once

#include "problem.h"

namespace xfn {

const char* isa();                    // "unknown" where XFN_ISA names none
bool multiplies();                    // whether products of float32 are faster here than MKL's: on AMD's processors
const Kernels* kernels(Dtype dtype);  // null: there are none

}  // namespace xfn
