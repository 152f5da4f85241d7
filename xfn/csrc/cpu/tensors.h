// Torch's tensors, as all ops of this library meet them.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "torch.h"

namespace {

namespace ts = torch::stable;
using ts::Tensor;
using Maybe = std::optional<Tensor>;

// A tensor on the CPU by torch's C shim: a tenth of what the search for aten's new_empty costs.
inline Tensor make(const Shape& shape, ScalarType dtype) {
  Shape strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(shape[i], 1);
  const auto code = ts::detail::to<int32_t>(ts::detail::from(dtype));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided((int64_t)shape.size(), shape.data(), strides.data(), code,
                                                         aoti_torch_device_type_cpu(), 0, &made));
  Tensor t(made);
  soon(t.mutable_data_ptr(), t.numel() * t.element_size());
  return t;
}

// What torch's contiguous makes.
inline Tensor packed(const Tensor& t) {
  if (t.numel() > 4096) return ts::contiguous(t);
  Tensor made = make(shape_of(t), t.scalar_type());
  copy(t, made.mutable_data_ptr());
  return made;
}

// What an op returns in place of a result that is not wanted.
inline Tensor absent(ScalarType dtype) { return make({0}, dtype); }

inline void zero(Tensor& t) { ts::zero_(t); }

}  // namespace
