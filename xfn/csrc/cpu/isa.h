// Which instruction set this process uses, and its kernels.
#pragma once

#include "problem.h"

namespace xfn {

const char* isa();                    // "unknown" where XFN_ISA names none
const Kernels* kernels(Dtype dtype);  // null: there are none

}  // namespace xfn
