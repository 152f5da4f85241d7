// One call over the entries of a sparse pattern, as kernels see it: plain numbers and pointers, no torch.
//
// Strides count elements, are 0 where a tensor is shared, and are 1 for the last dim. Values have one number an entry, in
// the dtype of sums.
#pragma once
#include <cstdint>

#include "problem.h"

namespace xfn {

struct Listing {  // the entries by row, or by column: those of line i are [ends[i - 1], ends[i])
  const int32_t *ends = nullptr, *places = nullptr;  // place: the line of the other side that an entry meets
  const int32_t* order = nullptr;                    // where an entry's value stands; null: where the entry does
  int64_t batch = 0, head = 0, place_batch = 0, place_head = 0;
  int64_t count = 0;  // of lines
};

struct Features {  // [B, length, heads, features]
  const void* data = nullptr;
  int64_t batch = 0, length = 0, head = 0;
};

struct PerHead {  // [B, heads, entries] or [B, heads, queries], in the dtype of sums
  const void* data = nullptr;
  int64_t batch = 0, head = 0;
};

enum class SparseMember : int { forward, delta, queries, keys, between, mix, softmax };

struct SparseProblem {
  int64_t B, M, N, H, G, K, V, Z;
  double scale = 1, keep = 1;
  uint32_t threshold = 0;
  Listing rows, columns;
  Features q, k, v, out, dout;
  PerHead values, lse, dlse, delta;
  const int64_t* key = nullptr;  // two words per example, or null: no dropout
  int64_t key_batch = 0;
  int64_t heads = 0;  // of a mix's result: H, or G

  void *result = nullptr, *result2 = nullptr;  // contiguous: out and lse; delta; dq; dk and dv; values; a mix
  int64_t longest = 0;                         // the most entries that a line has
  int64_t chunks = 1;                          // into which the lines of a head are cut, one task each
};

}  // namespace xfn
