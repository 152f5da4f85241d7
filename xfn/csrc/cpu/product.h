// One product of matrices as kernels see it: plain numbers and pointers, no torch.
//
//     c[m][n] = sum over k of a[m, k] · b[k, n], and line[n]
//
// Strides count elements; one of a's and one of b's is 1. n is a multiple of 16, and so is k where b's rows lie apart.
#pragma once
#include <algorithm>
#include <cstdint>

namespace xfn {

struct Product {
  int64_t M, N, K;
  const void *a, *b, *line;  // line: absent, or added to every row
  int64_t a_row, a_step, b_step, b_column;
  void* c;         // contiguous
  int64_t height;  // rows of a task

  static constexpr int64_t WIDTH = 512;  // columns of a task
  int64_t across() const { return (N + WIDTH - 1) / WIDTH; }
  int64_t tasks() const { return across() * ((M + height - 1) / std::max<int64_t>(1, height)); }
};

}  // namespace xfn
