// One call of the attention family, as kernels see it: plain numbers and pointers, no torch.
//
// Strides count elements; the last dim of every tensor but dense is contiguous. A batch is flat: `batch[b]` is where
// example b begins, so a tensor that broadcasts, or whose batch dims do not collapse, needs no copy.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace xfn {

enum class Dtype : int { f32, f64, bf16, f16, boolean };

struct Sequence {  // [..., length, heads, features]
  const void* data = nullptr;
  const int64_t* batch = nullptr;
  int64_t length = 0, head = 0;
};

struct Rows {  // [..., heads, length], in the dtype of sums
  const void* data = nullptr;
  const int64_t* batch = nullptr;
  int64_t head = 0, length = 0;
};

struct Square {  // [..., heads, queries, keys], in a dtype of its own
  const void* data = nullptr;
  const int64_t* batch = nullptr;
  int64_t head = 0, query = 0, key = 0;
  Dtype dtype = Dtype::f32;
};

struct Bound {  // int64 [..., queries]
  const int64_t* data = nullptr;
  const int64_t* batch = nullptr;
  int64_t query = 0;
};

struct Layout {                   // [..., heads, rows, columns] of tiles, `size` queries by `size` keys each
  const uint8_t* live = nullptr;  // absent: all is live
  const int64_t* batch = nullptr;
  int64_t head = 0, row = 0;
  const int32_t* index = nullptr;  // where a tile that is live in part has its words; < 0: it is live throughout
  const int64_t* index_batch = nullptr;
  int64_t index_head = 0, index_row = 0;
  const uint32_t* words = nullptr;  // [tiles, size, (size + 31) / 32]: bit j of word w is key 32 w + j
  const int64_t* words_batch = nullptr;
  int64_t size = 0, columns = 0;
  int shift = 0;  // size = 1 << shift
};

struct Operands {  // x, or a tangent of x; what is absent has no data
  Sequence q, k, v;
  Square dense;
  Rows slopes;           // [..., heads], its length stride unused
  Rows spoilt, unsound;  // NaN for queries and for keys that are not finite and were made zero, else 0; both or none
};

struct Outputs {  // y, a tangent or a cotangent of y
  Sequence out;
  Rows lse;
};

// The family and its parts: dense and dense2 of backward and hvp.
enum class Member : int { forward, dual, backward, jvp, hvp, jvp2, dense, dense2, gather, decode, merge };

struct Problem {
  int64_t B, M, N, H, G, K, V;
  int64_t R;           // H / G, the heads that share a key head
  double scale, keep;  // keep: what survives dropout is multiplied by 1 / keep
  uint32_t threshold;  // a lane of bits below it is dropped
  Dtype dtype;

  Operands x, u, w;  // u: a tangent of x; w: a second one
  Outputs y, uy, wy, dy, tdy;
  Bound lo, hi;
  Layout layout;
  const int64_t* key;  // two words per example, or null: no dropout
  const int64_t* key_batch;

  // Results, contiguous with batch first. Gradients are one per example.
  void *out, *tout, *dq, *dk, *dv;
  void* dense;           // in the dtype of sums, [slices, M or 1, N or 1]: examples and heads that share their bias
  const int64_t* slice;  // share a slice, slice[b * H + h]
  int64_t slices, dense_M, dense_N;
  // Each query and key of an example and head has a number in `dense`: alone, and in the dtype of the operands where
  // the bias is; or in turns, which one task after another adds to.
  bool alone, turns;
  void *lse, *tlse, *slopes;  // in the dtype of sums; slopes one per query, [B, H, M]
  std::atomic<bool>* broken;  // set where a result is not finite
  int64_t chunks;             // into which the tiles of a head are cut, one task each
  int64_t turns_B, turns_G;   // examples and key heads that follow one another, or 1
  char* parts;                // what chunks sum over queries, for gather, or ranges of keys over keys, for merge
  size_t part() const {       // bytes of one
    return 64 + N * ((K + 15) / 16 + (V + 15) / 16) * 16 * (dtype == Dtype::f64 ? 8 : 4);
  }
  // Whether a result, of so many numbers for each example, is larger than its share of the caches and goes past them.
  bool far(int64_t numbers) const {
    return B * numbers * (dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2) >= 4 << 20;
  }
};

// A forward of few queries, cut by its shape alone: tasks of decode, or none if it is another; then of merge, and the
// bytes between them.
struct Ranges {
  int64_t tasks, merges;
  size_t parts;
};

struct SparseProblem;  // pattern.h
enum class SparseMember : int;
struct RowProblem;  // row.h
enum class RowMember : int;
struct Product;  // product.h

// The kernels of one instruction set and one dtype.
struct Kernels {
  int64_t (*tiles)(const Problem&);  // of one key head
  Ranges (*ranges)(const Problem&);
  size_t (*scratch)(const Problem&, Member);  // bytes for one task
  void (*run)(const Problem&, Member, int64_t task, char* scratch);
  size_t (*sparse_scratch)(const SparseProblem&, SparseMember);
  void (*sparse)(const SparseProblem&, SparseMember, int64_t task, char* scratch);
  size_t (*rows)(const RowProblem&, RowMember, int64_t task, char* scratch);  // without scratch, the bytes for one task
  size_t (*product)(const Product&, int64_t task, char* scratch);             // the same; of float32 alone
};

}  // namespace xfn
