// Torch's tensors as all ops of this library meet them: what cpu/tensors.h is for the one beside it.
#pragma once
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>

#include "../cpu/torch.h"

namespace {

using at::Tensor;
using Maybe = std::optional<Tensor>;

inline Tensor make(const Shape& shape, ScalarType dtype) {
  Tensor t = at::detail::empty_cpu(shape, dtype);
  soon(t.mutable_data_ptr(), t.nbytes());
  return t;
}

inline Tensor packed(const Tensor& t) {
  if (t.numel() > 4096) return t.contiguous();
  Tensor made = make(shape_of(t), t.scalar_type());
  copy(t, made.mutable_data_ptr());
  return made;
}

inline Tensor absent(ScalarType) { return {}; }

inline void zero(Tensor& t) { t.zero_(); }

}  // namespace
