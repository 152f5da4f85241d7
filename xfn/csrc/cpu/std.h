// What kernels need of the standard library, included before a file raises its target.
#pragma once

#include <algorithm>
#include <bit>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // of its own _mm512_undefined_ps
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include "pattern.h"
#include "problem.h"
#include "product.h"
#include "row.h"
