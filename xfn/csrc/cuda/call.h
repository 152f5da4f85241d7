// One call over a sparse pattern's entries, or over all keys, as CUDA kernels see it: numbers and pointers to device
// memory, no torch.
//
// Strides count elements, are 0 where a tensor is shared, and are 1 for the last dim. Results are contiguous.
#pragma once
#include <stdint.h>

namespace xfn {

struct Features {  // [B, length, heads, features]
  const void* data;
  int64_t batch, length, head;
};

struct PerHead {  // [B, heads, entries] or [B, heads, queries]
  const float* data;
  int64_t batch, head;
};

struct Bounds {  // [B, queries]
  const int64_t* data;
  int64_t batch, length;
};

struct Listing {                         // the entries by row, or by column: those of line i are [ends[i - 1], ends[i])
  const int32_t *ends, *places, *order;  // place: the line of the other side; order: where an entry's value stands
  int64_t batch, head, place_batch, place_head;
  int64_t Z;  // of places
};

enum class Dtype : int { f32, f16, bf16 };
enum class Member : int { forward, queries, keys, between, mix, softmax };

struct Call {
  Dtype type;  // of features
  int64_t B, M, N, H, G, K, V;
  int64_t heads;      // of a mix's result: H, or G
  float scale, grow;  // grow: 1 / (1 − p)
  uint32_t threshold;
  Listing rows, columns;
  Features q, k, v, out, dout;
  PerHead values, lse, dlse, delta;
  const int64_t* key;  // two words per example, or null: no dropout
  int64_t key_batch;
  void *result, *result2;  // out; dq; dk and dv
  float* numbers;          // lse; δ; values; a mix; a softmax
  Bounds lo, hi;           // of attention to all keys; or null: no bound
  PerHead slopes;          // [B, heads, 1]
  float* shifts;           // [B, heads, queries], whose sums are the gradients of slopes
  int32_t wide, wide2;     // whether result and result2 are float32 whatever features are
  int32_t aligned;         // whether every row of features is whole vectors of 16 bytes
  int32_t lanes;           // that hold a row of features together; the launcher's
};

}  // namespace xfn

// Start a kernel in a stream, over entries or over all keys; 0, or CUDA's error, which has a text.
extern "C" int xfn_cuda_launch(const xfn::Call* call, xfn::Member member, void* stream);
extern "C" int xfn_cuda_attend(const xfn::Call* call, xfn::Member member, void* stream);
extern "C" const char* xfn_cuda_error(int error);
