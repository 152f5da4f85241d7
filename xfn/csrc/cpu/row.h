// One call of an op on rows, as kernels see it: plain numbers and pointers, no torch.
//
// There are P parts of R rows of E numbers. Strides count elements, are 0 where a tensor is shared, and are 1 for the
// last dim. What is summed over rows has one line for each task, which are `chunk` rows of a part.
#pragma once
#include "problem.h"

namespace xfn {

enum class RowMember : int {
  norm,
  norm_back,
  softmax,
  softmax_back,
  drop,
  drop_back,
  gate,
  gate_back,
  turn,
  turn_back
};
// As _core/activations.py orders them.
enum class Activation : int { identity, relu, leaky_relu, gelu, squared_relu, star_relu, smelu, silu, sigmoid, tanh };

struct Grid {  // [P, R, E] in the dtype of the operands, of which E may be heads; or one line for each part or row
  const void* data = nullptr;
  int64_t part = 0, row = 0, head = 0;
};

struct RowProblem {
  int64_t P, R, E, chunk;
  Grid x, y, dy, residual, up;
  Grid weight, bias, up_bias;  // [P, E], in the dtype of sums
  Grid cos, sin;               // [P, R, pairs], in the dtype of sums
  Grid lo, hi;                 // [P, R] of int64
  double eps = 0, grow = 1;
  bool centered = false, logarithm = false;
  Activation activation = Activation::identity;
  uint32_t threshold = 0;  // a lane of bits below it is dropped
  const int64_t* key = nullptr;
  int64_t key_part = 0;
  int64_t heads = 1, pairs = 0;  // of a row, and of a head; what pairs leave of it stays
  bool adjacent = false;

  bool far = false;                           // the result goes past the caches
  void *out = nullptr, *dup = nullptr;        // y, or dx, contiguous; null: not needed
  void *dweight = nullptr, *dbias = nullptr;  // [P, tasks, E], in the dtype of sums; null: not needed
  void* dup_bias = nullptr;                   // the same
  void *dcos = nullptr, *dsin = nullptr;      // [P, R, pairs]
  void* moments = nullptr;                    // mean and r of each row, [P, R, 2] in the dtype of sums; null: not kept

  int64_t tasks() const { return (R + chunk - 1) / chunk; }  // of one part
};

}  // namespace xfn
