// Tiles of rows in shared memory, one a block, and rows that a thread holds: of at most W features, zeros behind the last,
// in float32 whatever they were.
#pragma once
#include "warp.cuh"

namespace xfn {

constexpr int THREADS = WARP * WARPS, EIGHT = 8;  // keys or queries that are met together
constexpr int ROOM = 4096, LEAST = 4;             // numbers of a tile; features of its narrowest rows

struct Tile {
  float numbers[ROOM];
  int lo[ROOM / LEAST / 2], hi[ROOM / LEAST / 2];
  int first[WARPS], last[WARPS];
};
__device__ static Tile& tile() {
  __shared__ Tile here;
  return here;
}

// The task of a block: some lines, `each` of them, of one head of one example; the last lines come first, for they may see
// the most.
struct Share {
  int64_t index, count, pairs, heads;
  int lines, each;
  __device__ Share(int64_t examples, int64_t heads, int64_t lines, int each)
      : index(blockIdx.x),
        count(examples * heads * ((lines + each - 1) / each)),
        pairs(examples * heads),
        heads(heads),
        lines((int)lines),
        each(each) {}
  __device__ bool left() const { return index < count; }
  __device__ void next() { index += gridDim.x; }
  __device__ int64_t head() const { return index % pairs % heads; }
  __device__ int64_t example() const { return index % pairs / heads; }
  __device__ int first() const { return (int)((count - 1 - index) / pairs) * each; }
};

// Numbers of any dtype: which one is asked once a row.
template <int W, class T> __device__ void load(float (&x)[W], const T* row, int features, float times) {
#pragma unroll
  for (int f = 0; f < W; f++) x[f] = f < features ? widen(row[f]) * times : 0;
}
template <int W> __device__ void load(float (&x)[W], Dtype type, const Features& t, int64_t b, int64_t i, int64_t h,
                                      int64_t features, float times = 1) {
  if (type == Dtype::f32) return load(x, row_of<float>(t, b, i, h), (int)features, times);
  if (type == Dtype::f16) return load(x, row_of<__half>(t, b, i, h), (int)features, times);
  load(x, row_of<__nv_bfloat16>(t, b, i, h), (int)features, times);
}
template <int W, class T> __device__ void store(const float (&x)[W], T* row, int features, float times) {
#pragma unroll
  for (int f = 0; f < W; f++)
    if (f < features) narrow(x[f] * times, row[f]);
}
template <int W>
__device__ void store(const float (&x)[W], Dtype type, void* result, int64_t row, int64_t features, float times) {
  if (type == Dtype::f32) return store(x, static_cast<float*>(result) + row * features, (int)features, times);
  if (type == Dtype::f16) return store(x, static_cast<__half*>(result) + row * features, (int)features, times);
  store(x, static_cast<__nv_bfloat16*>(result) + row * features, (int)features, times);
}

// Rows of a tile, from line `first` on; zeros behind the last.
template <int W, class T> __device__ void fill(float* rows, int count, const Features& t, int64_t b, int first,
                                               int64_t h, int64_t lines, int64_t features, float times) {
  for (int at = threadIdx.x; at < count * W; at += THREADS) {
    const int line = first + at / W, f = at % W;
    rows[at] = line < lines && f < features ? widen(row_of<T>(t, b, line, h)[f]) * times : 0;
  }
}
template <int W> __device__ void fill(float* rows, int count, Dtype type, const Features& t, int64_t b, int first,
                                      int64_t h, int64_t lines, int64_t features, float times = 1) {
  if (type == Dtype::f32) return fill<W, float>(rows, count, t, b, first, h, lines, features, times);
  if (type == Dtype::f16) return fill<W, __half>(rows, count, t, b, first, h, lines, features, times);
  fill<W, __nv_bfloat16>(rows, count, t, b, first, h, lines, features, times);
}
template <int W> __device__ void read(float (&x)[W], const float* row) {
#pragma unroll
  for (int f = 0; f < W; f += 4) {
    const Pack<float, 4> pack = *reinterpret_cast<const Pack<float, 4>*>(row + f);
#pragma unroll
    for (int j = 0; j < 4; j++) x[f + j] = pack.at[j];
  }
}

template <int W> __device__ float dot(const float (&x)[W], const float (&y)[W]) {
  float sum = 0;
#pragma unroll
  for (int f = 0; f < W; f++) sum = fmaf(x[f], y[f], sum);
  return sum;
}
template <int W> __device__ void add(float (&x)[W], float weight, const float (&y)[W]) {
#pragma unroll
  for (int f = 0; f < W; f++) x[f] = fmaf(weight, y[f], x[f]);
}

struct Span {
  int first, last;
  __device__ static Span of_warp(int first, int last) {  // from the least first to the most last of its lanes
    for (int step = WARP / 2; step; step /= 2) {
      first = min(first, __shfl_xor_sync(ALL, first, step));
      last = max(last, __shfl_xor_sync(ALL, last, step));
    }
    return {first, last};
  }
  __device__ Span of_block() const {  // of those of its warps
    Tile& t = tile();
    __syncthreads();  // with what was there before
    if (threadIdx.x % WARP == 0) t.first[threadIdx.x / WARP] = first, t.last[threadIdx.x / WARP] = last;
    __syncthreads();
    Span all = *this;
    for (int w = 0; w < WARPS; w++) all = {min(all.first, t.first[w]), max(all.last, t.last[w])};
    return all;
  }
};

}  // namespace xfn
