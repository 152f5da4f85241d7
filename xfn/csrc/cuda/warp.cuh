// A warp: lanes that hold rows of features together, and the entries of a line that they walk.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "call.h"

#ifndef XFN_BLOCKS  // of a launch, at most
#define XFN_BLOCKS 0x7fffffff
#endif

namespace xfn {

constexpr int WARP = 32, WARPS = 4;  // lanes in a warp, warps in a block
constexpr unsigned ALL = 0xffffffffu;
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f, FAR = __builtin_inff();

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void narrow(float x, float& to) { to = x; }
__device__ inline void narrow(float x, __half& to) { to = __float2half_rn(x); }
__device__ inline void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }

// 2ˣ as one instruction; less than 2⁻¹²⁶ is 0.
__device__ inline float power(float x) {
#ifdef __CUDA_ARCH__
  float found;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
  return found;
#else
  return exp2f(x);
#endif
}
// lse in base 2, +∞ where nothing is seen.
__device__ inline float base2(float lse) { return lse == -FAR ? FAR : lse * LOG2E; }

template <class T, int N> struct alignas(sizeof(T) * N) Pack {  // read and written at once
  T at[N];
};

// A warp is groups of `count` lanes; each group holds a row, and takes an entry of its own.
struct Lanes {
  int lane, count;
  __device__ explicit Lanes(int count) : lane(threadIdx.x % WARP), count(count) {}
  __device__ int groups() const { return WARP / count; }
  __device__ int group() const { return lane / count; }
  __device__ int place() const { return lane % count; }
  __device__ float sum(float x) const {  // over a group, in each of its lanes
    for (int step = count / 2; step; step /= 2) x += __shfl_xor_sync(ALL, x, step);
    return x;
  }
};

// Of a row of features, what one lane holds: every `count`th pack of N elements, E numbers in all.
template <class T, int N, int E> struct Row {
  float x[E] = {};

  __device__ void load(const T* row, int64_t features, const Lanes& at) {
#pragma unroll
    for (int i = 0; i < E; i += N) {
      const int64_t f = (int64_t)i * at.count + at.place() * N;
      if (f >= features) continue;
      const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(row + f);
#pragma unroll
      for (int j = 0; j < N; j++) x[i + j] = widen(pack.at[j]);
    }
  }
  template <class To> __device__ void store(To* row, int64_t features, const Lanes& at, float times) const {
    constexpr int S = N * sizeof(To) > 16 ? 16 / sizeof(To) : N;
#pragma unroll
    for (int i = 0; i < E; i += N) {
      const int64_t f = (int64_t)i * at.count + at.place() * N;
      if (f >= features) continue;
#pragma unroll
      for (int j = 0; j < N; j += S) {
        Pack<To, S> pack;
#pragma unroll
        for (int l = 0; l < S; l++) narrow(x[i + j + l] * times, pack.at[l]);
        *reinterpret_cast<Pack<To, S>*>(row + f + j) = pack;
      }
    }
  }
  __device__ float dot(const Row& other) const {  // this lane's share
    float sum = 0;
#pragma unroll
    for (int i = 0; i < E; i++) sum = fmaf(x[i], other.x[i], sum);
    return sum;
  }
  __device__ void add(float weight, const Row& other) {
#pragma unroll
    for (int i = 0; i < E; i++) x[i] = fmaf(weight, other.x[i], x[i]);
  }
  // times, and the same of another group, times what that one says.
  __device__ void join(float times, float others, int step) {
#pragma unroll
    for (int i = 0; i < E; i++) x[i] = x[i] * times + __shfl_xor_sync(ALL, x[i], step) * others;
  }
  __device__ void join(const Lanes& at) {  // the groups' sums, in each of them
    for (int step = at.count; step < WARP; step *= 2) join(1, 1, step);
  }
};

template <class T> __device__ const T* row_of(const Features& t, int64_t b, int64_t i, int64_t h) {
  return static_cast<const T*>(t.data) + b * t.batch + i * t.length + h * t.head;
}
__device__ inline float number(const PerHead& t, int64_t b, int64_t h, int64_t i) {
  return t.data ? t.data[b * t.batch + h * t.head + i] : 0;
}

// Eight of dropout's decisions, for query m and the keys from 8 `eighth` on: the lanes of Philox-4x32-7 at (eighth, m, h, 0).
struct Lots {
  uint32_t words[4];
  __device__ Lots(const Call& p, int64_t b, int64_t h, int64_t m, uint32_t eighth) {
    const int64_t* key = p.key + b * p.key_batch;
    uint32_t c0 = eighth, c1 = (uint32_t)m, c2 = (uint32_t)h, c3 = 0, k0 = (uint32_t)key[0], k1 = (uint32_t)key[1];
#pragma unroll
    for (int round = 0; round < 7; round++) {
      const uint64_t x = (uint64_t)c0 * 0xD2511F53u, y = (uint64_t)c2 * 0xCD9E8D57u;
      c0 = (uint32_t)(y >> 32) ^ c1 ^ k0, c1 = (uint32_t)y, c2 = (uint32_t)(x >> 32) ^ c3 ^ k1, c3 = (uint32_t)x;
      k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
  }
  __device__ static bool stays(const Call& p, uint32_t word, uint32_t lane) {
    return (word >> lane % 2 * 16 & 0xffff) >= p.threshold;
  }
  __device__ unsigned bits(const Call& p) const {
    unsigned found = 0;
#pragma unroll
    for (int lane = 0; lane < 8; lane++) found |= (unsigned)stays(p, words[lane / 2], lane) << lane;
    return found;
  }
};

// Whether dropout keeps the weight of query m and key n.
__device__ inline bool kept(const Call& p, int64_t b, int64_t h, int64_t m, int64_t n) {
  const Lots lots(p, b, h, m, (uint32_t)n / 8);
  const uint32_t lane = n % 8, *w = lots.words;
  return Lots::stays(p, lane < 2 ? w[0] : lane < 4 ? w[1] : lane < 6 ? w[2] : w[3], lane);
}

struct Line {  // the entries [first, last) of one line of one head
  const int32_t *places, *order;
  int64_t first, last;
  __device__ static Line of(const Listing& t, int64_t b, int64_t h, int64_t line) {
    const int32_t* ends = t.ends + b * t.batch + h * t.head;
    const int64_t at = b * t.place_batch + h * t.place_head;
    const int64_t first = line ? max(ends[line - 1], 0) : 0;  // whoever made the tables, nothing behind them is read
    return {t.places + at, t.order ? t.order + at : nullptr, first, min((int64_t)ends[line], t.Z)};
  }
};

struct Entry {
  int64_t at;     // its number; of no entry: at least the last of its line
  int32_t place;  // the line of the other side
  bool live;      // whether it is an entry
  bool keep;      // whether dropout keeps it
};

// step(entry) for a line's entries, one each group; all lanes take every step. `keep(place)`: asked once an entry.
template <class Keep, class Step>
__device__ void walk(const Line& line, int64_t bound, const Lanes& at, bool drops, const Keep& keep, const Step& step) {
  for (int64_t first = line.first; first < line.last; first += WARP) {
    const int64_t mine = first + at.lane;
    const int32_t place = mine < line.last ? line.places[mine] : -1;
    const bool live = place >= 0 && place < bound;
    const unsigned whole = __ballot_sync(ALL, live);
    const unsigned stays = drops ? __ballot_sync(ALL, live && keep(place)) : whole;
    const int some = (int)min(line.last - first, (int64_t)WARP);
    for (int i = 0; i < some; i += at.groups()) {
      const int j = i + at.group();
      step(Entry{first + j, __shfl_sync(ALL, place, j), (whole >> j & 1) != 0, (stays >> j & 1) != 0});
    }
  }
}

inline int start(void (*kernel)(Call), const Call& call, int64_t blocks, void* stream) {
  if (!blocks) return 0;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3((unsigned)std::min<int64_t>(blocks, XFN_BLOCKS));
  config.blockDim = dim3(WARP * WARPS);
  config.stream = static_cast<cudaStream_t>(stream);
  return (int)cudaLaunchKernelEx(&config, kernel, call);
}

}  // namespace xfn
