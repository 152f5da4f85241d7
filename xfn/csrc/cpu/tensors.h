// Torch's tensors, as all ops of this library meet them.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

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

namespace ts = torch::stable;
using torch::headeronly::ScalarType;
using ts::Tensor;
using Maybe = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

inline xfn::Dtype dtype_of(const Tensor& t) {
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

// A tensor on the CPU by torch's C shim: a tenth of what the search for aten's new_empty costs.
inline Tensor make(const Shape& shape, ScalarType dtype) {
  Shape strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(shape[i], 1);
  const auto code = ts::detail::to<int32_t>(ts::detail::from(dtype));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided((int64_t)shape.size(), shape.data(), strides.data(), code,
                                                         aoti_torch_device_type_cpu(), 0, &made));
  Tensor t(made);
#ifdef __linux__
  constexpr uintptr_t page = 2 << 20;  // what is fresh from the system comes sooner by large pages than by small
  if (const size_t bytes = t.numel() * t.element_size(); bytes >= 2 * page) {
    const uintptr_t from = (uintptr_t)t.mutable_data_ptr(), first = (from + page - 1) & -page;
    madvise((void*)first, (from + bytes - first) & -page, MADV_HUGEPAGE);
  }
#endif
  return t;
}

// What torch's contiguous makes; of a small tensor in less time than its dispatch takes.
inline Tensor packed(const Tensor& t) {
  if (t.numel() > 4096) return ts::contiguous(t);
  const Shape sizes(t.sizes().begin(), t.sizes().end()), strides(t.strides().begin(), t.strides().end());
  const ScalarType dtype = t.scalar_type();
  const size_t width = t.element_size();
  Tensor made = make(sizes, dtype);
  char* to = (char*)made.mutable_data_ptr();
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
  return made;
}

// The dtype of sums.
inline ScalarType wide(ScalarType dtype) { return dtype == ScalarType::Double ? dtype : ScalarType::Float; }

}  // namespace
