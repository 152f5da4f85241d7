// What tensors share, of whichever of torch's two ABIs: dtypes, shapes, memory.
#pragma once
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "problem.h"

namespace {

using torch::headeronly::ScalarType;
using Shape = std::vector<int64_t>;

template <class Tensor> xfn::Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return xfn::Dtype::f32;
    case ScalarType::Double:
      return xfn::Dtype::f64;
    case ScalarType::BFloat16:
      return xfn::Dtype::bf16;
    case ScalarType::Half:
      return xfn::Dtype::f16;
    default:
      break;
  }
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Bool, "no kernel for this dtype");
  return xfn::Dtype::boolean;
}

// The dtype of sums.
inline ScalarType wide(ScalarType dtype) { return dtype == ScalarType::Double ? dtype : ScalarType::Float; }

// What is fresh from the system comes sooner by large pages than by small.
inline void soon([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#ifdef __linux__
  constexpr uintptr_t page = 2 << 20;
  if (bytes < 2 * page) return;
  const uintptr_t from = (uintptr_t)memory, first = (from + page - 1) & -page;
  madvise((void*)first, (from + bytes - first) & -page, MADV_HUGEPAGE);
#endif
}

// A shape as a vector.
template <class Tensor> Shape shape_of(const Tensor& t) { return Shape(t.sizes().begin(), t.sizes().end()); }

// The numbers of t, one after another, to where there is room for them; for a small t in less time than a dispatch takes.
template <class Tensor> void copy(const Tensor& t, void* room) {
  const Shape sizes = shape_of(t), strides(t.strides().begin(), t.strides().end());
  const size_t width = t.element_size();
  char* to = (char*)room;
  const char* from = (const char*)t.const_data_ptr();
  Shape at(sizes.size(), 0);
  for (int64_t left = t.numel(), place = 0; left; left--, to += width) {
    std::memcpy(to, from + place * (int64_t)width, width);
    for (size_t i = at.size(); i-- > 0; at[i] = 0) {
      place += strides[i];
      if (++at[i] < sizes[i]) break;
      place -= strides[i] * sizes[i];
    }
  }
}

}  // namespace
