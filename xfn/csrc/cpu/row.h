// One call of an op on rows, as kernels see it: plain numbers and pointers, no torch.
//
// There are P parts of R rows of E numbers. Strides count elements, are 0 where a tensor is shared, and are 1 for the
// last dim. What is summed over rows has one line for each task, which are `chunk` rows of a part.
#pragma once
#include "problem.h"

namespace xfn {

enum class RowMember : int { norm, norm_back, softmax, softmax_back, dropout, dropout_back };
// As _core/activations.py orders them.
enum class Activation : int { identity, relu, leaky_relu, gelu, squared_relu, star_relu, smelu, silu, sigmoid, tanh };

struct Grid {  // [P, R, E] in the dtype of the operands; or one line of it for each part or row
  const void* data = nullptr;
  int64_t part = 0, row = 0;
};

struct RowProblem {
  int64_t P, R, E, chunk;
  Grid x, y, dy, residual;
  Grid weight, bias;  // [P, E], in the dtype of sums
  Grid lo, hi;        // [P, R] of int64
  double eps = 0, grow = 1;
  bool centered = false, logarithm = false;
  Activation activation = Activation::identity;
  uint32_t threshold = 0;  // a lane of bits below it is dropped
  const int64_t* key = nullptr;
  int64_t key_part = 0;

  bool far = false;                           // the result goes past the caches
  void* out = nullptr;                        // y, or dx, contiguous; null: not needed
  void *dweight = nullptr, *dbias = nullptr;  // [P, tasks, E], in the dtype of sums; null: not needed

  int64_t tasks() const { return (R + chunk - 1) / chunk; }  // of one part
};

}  // namespace xfn
