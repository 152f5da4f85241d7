// Attention of few features: a thread has a query, or for dk and dv a key, and some more where they fit its registers; a
// block brings tiles of the other side into shared memory, in float32, where all lanes of a warp read the same row. A row
// that is read serves a thread's every query, for shared memory gives one number to a lane in the time of four products.
//
//     forward    s = c q · k − slope |m − n|,  P = 2^s / Σ 2^s,  out = Σ (P ∘ D) v,  lse           c = scale log₂ e
//     queries    δ = dout · out − dlse;  dS = P ∘ (D ∘ (dout · v) − δ),  dq = scale Σ dS k,  −Σ dS |m − n|
//     keys       dk = scale Σ dS q,  dv = Σ (P ∘ D) dout
//
// Numbers of one sum are added by one thread, in ascending order of what they stand for. Hidden keys are passed over, and
// not multiplied by zero, so that whatever they hold stays there.
#pragma once
#include "tile.cuh"

namespace xfn {

__device__ inline Span bounds(const Call& p, int64_t b, int64_t m) {  // lo ≤ n < hi, of query m
  const int64_t lo = p.lo.data ? p.lo.data[b * p.lo.batch + m * p.lo.length] : 0;
  const int64_t hi = p.hi.data ? p.hi.data[b * p.hi.batch + m * p.hi.length] : p.N;
  return {(int)max(lo, (int64_t)0), (int)min(hi, p.N)};
}

// What a thread's Q queries see, and what its warp does: `some` of them keys in there, all of them those in `whole`.
template <int Q> struct Sight {
  Span of[Q], some, whole;
  __device__ Sight(const Call& p, int64_t b, int m) {
    int first = (int)p.N, last = 0, late = 0, early = (int)p.N;
#pragma unroll
    for (int i = 0; i < Q; i++) {
      of[i] = {0, 0};
      if (m + i * WARP >= p.M) continue;
      of[i] = bounds(p, b, m + i * WARP);
      if (of[i].first < of[i].last) first = min(first, of[i].first), last = max(last, of[i].last);
      late = max(late, of[i].first), early = min(early, of[i].last);
    }
    some = Span::of_warp(first / EIGHT * EIGHT, last);
    const Span others = Span::of_warp(early, late);
    whole = {others.last, others.first};
  }
  __device__ bool plain(const Call& p, int n) const {  // whether all see eight keys, and nothing is added or dropped
    return n >= whole.first && n + EIGHT <= whole.last && !p.slopes.data && !p.key;
  }
  __device__ bool sees(int i, int n) const { return n >= of[i].first && n < of[i].last; }
};

// step(k, v, n) for every eight keys from n on that a warp's queries may see, with their rows; by tiles of the block.
template <int W, class Step>
__device__ void over_keys(const Call& p, int64_t b, int64_t g, const Span& mine, const Step& step) {
  constexpr int ROWS = ROOM / 2 / W;
  float *keys = tile().numbers, *values = keys + ROWS * W;
  const Span block = mine.of_block();
  for (int n0 = block.first; n0 < block.last; n0 += ROWS) {
    const int rows = min(ROWS, (block.last - n0 + EIGHT - 1) / EIGHT * EIGHT);
    __syncthreads();
    fill<W>(keys, rows, p.type, p.k, b, n0, g, p.N, p.K), fill<W>(values, rows, p.type, p.v, b, n0, g, p.N, p.V);
    __syncthreads();
    for (int n = max(n0, mine.first); n < min(n0 + ROWS, mine.last); n += EIGHT)
      step(keys + (n - n0) * W, values + (n - n0) * W, n);
  }
}

template <int W, int Q> struct Held {  // by a thread, of the forward
  float q[Q][W], o[Q][W] = {}, top[Q], sum[Q];
  float slope;

  template <bool PLAIN> __device__ void meet(const Call& p, int64_t b, int64_t h, int m, const Sight<Q>& sight,
                                             const float* keys, const float* values, int n) {
    float s[Q][EIGHT];
#pragma unroll
    for (int j = 0; j < EIGHT; j++) {
      float k[W];
      read(k, keys + j * W);
#pragma unroll
      for (int i = 0; i < Q; i++) s[i][j] = dot(q[i], k);
    }
#pragma unroll
    for (int i = 0; i < Q; i++) {
      float most = top[i];
#pragma unroll
      for (int j = 0; j < EIGHT; j++) {
        if (!PLAIN && p.slopes.data) s[i][j] -= slope * (float)abs(m + i * WARP - n - j);
        if (!PLAIN && !sight.sees(i, n + j)) s[i][j] = -FAR;
        most = fmaxf(most, s[i][j]);
      }
      const float peak = most == -FAR ? 0 : most, times = power(top[i] - peak);
      sum[i] *= times, top[i] = most;
#pragma unroll
      for (int f = 0; f < W; f++) o[i][f] *= times;
      const unsigned keep = !PLAIN && p.key ? Lots(p, b, h, m + i * WARP, n / EIGHT).bits(p) : ~0u;
#pragma unroll
      for (int j = 0; j < EIGHT; j++) {
        s[i][j] = power(s[i][j] - peak), sum[i] += s[i][j];
        if (!PLAIN && !(keep >> j & 1)) s[i][j] = 0;
      }
    }
#pragma unroll
    for (int j = 0; j < EIGHT; j++) {
      float v[W];
      read(v, values + j * W);
#pragma unroll
      for (int i = 0; i < Q; i++)
        if (PLAIN || sight.sees(i, n + j)) add(o[i], s[i][j], v);
    }
  }
};

#define KERNEL template <int W, int Q> __global__ void __launch_bounds__(THREADS, 2)

KERNEL attend(const __grid_constant__ Call p) {
  const int warp = threadIdx.x / WARP * WARP * Q, lane = threadIdx.x % WARP;
  for (Share task(p.B, p.H, p.M, THREADS * Q); task.left(); task.next()) {
    const int64_t b = task.example(), h = task.head();
    const int m = task.first() + warp + lane;
    const Sight<Q> sight(p, b, m);
    Held<W, Q> held;
    held.slope = number(p.slopes, b, h, 0) * LOG2E;
#pragma unroll
    for (int i = 0; i < Q; i++) {
      held.top[i] = -FAR, held.sum[i] = 0;
      if (m + i * WARP < p.M) {
        load(held.q[i], p.type, p.q, b, m + i * WARP, h, p.K, p.scale * LOG2E);
      } else {
#pragma unroll
        for (int f = 0; f < W; f++) held.q[i][f] = 0;
      }
    }
    over_keys<W>(p, b, h / (p.H / p.G), sight.some, [&](const float* keys, const float* values, int n) {
      if (sight.plain(p, n))
        held.template meet<true>(p, b, h, m, sight, keys, values, n);
      else
        held.template meet<false>(p, b, h, m, sight, keys, values, n);
    });
#pragma unroll
    for (int i = 0; i < Q; i++) {
      const int64_t row = m + i * WARP;
      if (row >= p.M) continue;
      const float sum = held.sum[i];
      store(held.o[i], p.type, p.result, (b * p.M + row) * p.H + h, p.V, sum == 0 ? 0 : p.grow / sum);
      p.numbers[(b * p.H + h) * p.M + row] = sum == 0 ? -FAR : held.top[i] * LN2 + logf(sum);
    }
  }
}

KERNEL by_queries(const __grid_constant__ Call p) {
  const int warp = threadIdx.x / WARP * WARP * Q, lane = threadIdx.x % WARP;
  for (Share task(p.B, p.H, p.M, THREADS * Q); task.left(); task.next()) {
    const int64_t b = task.example(), h = task.head();
    const int m = task.first() + warp + lane;
    const Sight<Q> sight(p, b, m);
    const float slope = number(p.slopes, b, h, 0) * LOG2E;
    float q[Q][W] = {}, dout[Q][W] = {}, dq[Q][W] = {}, reach[Q] = {}, delta[Q] = {}, shift[Q] = {};
#pragma unroll
    for (int i = 0; i < Q; i++) {
      const int64_t row = m + i * WARP;
      if (row >= p.M) continue;
      const float lse = number(p.lse, b, h, row);
      if (p.dout.data) {
        load(dout[i], p.type, p.dout, b, row, h, p.V), load(q[i], p.type, p.out, b, row, h, p.V);
        delta[i] = dot(dout[i], q[i]);
      }
      delta[i] = lse == -FAR ? 0 : delta[i] - number(p.dlse, b, h, row), reach[i] = base2(lse);
      p.numbers[(b * p.H + h) * p.M + row] = delta[i];
      load(q[i], p.type, p.q, b, row, h, p.K, p.scale * LOG2E);
    }
    if (!p.result && !p.shifts) continue;
    const auto meet = [&]<bool PLAIN>(const float* keys, const float* values, int n) {
      unsigned keep[Q];
#pragma unroll
      for (int i = 0; i < Q; i++) keep[i] = !PLAIN && p.key ? Lots(p, b, h, m + i * WARP, n / EIGHT).bits(p) : ~0u;
#pragma unroll(PLAIN ? 2 : 1)
      for (int j = 0; j < EIGHT; j++) {
        float k[W], v[W];
        read(k, keys + j * W), read(v, values + j * W);
#pragma unroll
        for (int i = 0; i < Q; i++) {
          if (!PLAIN && !sight.sees(i, n + j)) continue;
          float s = dot(q[i], k), y = dot(dout[i], v);
          const float away = (float)abs(m + i * WARP - n - j);
          if (!PLAIN && p.slopes.data) s -= slope * away;
          if (!PLAIN) y = keep[i] >> j & 1 ? y * p.grow : 0;
          const float dS = power(s - reach[i]) * (y - delta[i]);
          add(dq[i], dS, k);
          if (!PLAIN) shift[i] -= dS * away;
        }
      }
    };
    over_keys<W>(p, b, h / (p.H / p.G), sight.some, [&](const float* keys, const float* values, int n) {
      if (sight.plain(p, n))
        meet.template operator()<true>(keys, values, n);
      else
        meet.template operator()<false>(keys, values, n);
    });
#pragma unroll
    for (int i = 0; i < Q; i++) {
      const int64_t row = m + i * WARP;
      if (row >= p.M) continue;
      if (p.shifts) p.shifts[(b * p.H + h) * p.M + row] = shift[i];
      if (p.result) store(dq[i], p.wide ? Dtype::f32 : p.type, p.result, (b * p.M + row) * p.H + h, p.K, p.scale);
    }
  }
}

// The queries that may see keys of [first, last).
__device__ inline Span watchers(const Call& p, int64_t b, int first, int last) {
  if (!p.lo.data && !p.hi.data) return {0, (int)p.M};
  Span found{(int)p.M, 0};
  for (int m = threadIdx.x; m < p.M; m += THREADS) {
    const Span sees = bounds(p, b, m);
    if (max(sees.first, first) < min(sees.last, last)) found = {min(found.first, m), m + 1};
  }
  return Span::of_warp(found.first, found.last).of_block();
}

KERNEL by_keys(const __grid_constant__ Call p) {
  constexpr int ROWS = ROOM / (2 * W + 2) / EIGHT * EIGHT;
  const int warp = threadIdx.x / WARP * WARP * Q, lane = threadIdx.x % WARP;
  Tile& at = tile();
  float *queries = at.numbers, *pulls = queries + ROWS * W, *reach = pulls + ROWS * W, *delta = reach + ROWS;
  const int64_t R = p.H / p.G;
  for (Share task(p.B, p.G, p.N, THREADS * Q); task.left(); task.next()) {
    const int64_t b = task.example(), g = task.head();
    const int first = task.first() + warp, last = first + WARP * Q, n = first + lane;
    float k[Q][W] = {}, v[Q][W] = {}, dk[Q][W] = {}, dv[Q][W] = {};
#pragma unroll
    for (int i = 0; i < Q; i++)
      if (n + i * WARP < p.N)
        load(k[i], p.type, p.k, b, n + i * WARP, g, p.K), load(v[i], p.type, p.v, b, n + i * WARP, g, p.V);
    const auto meet = [&]<bool PLAIN>(int j, int lo, int hi, int away, float slope, const unsigned (&bits)[Q]) {
      float q[W], dout[W];
      read(q, queries + j * W), read(dout, pulls + j * W);
#pragma unroll
      for (int i = 0; i < Q; i++) {
        bool keep = true;
        if (!PLAIN && p.key) keep = __shfl_sync(ALL, bits[i], lane / EIGHT * EIGHT + j % EIGHT) >> lane % EIGHT & 1;
        const int place = n + i * WARP;
        if (!PLAIN && (place < lo || place >= hi)) continue;
        float s = dot(q, k[i]), y = dot(dout, v[i]);
        if (!PLAIN && p.slopes.data) s -= slope * (float)abs(away - i * WARP);
        if (!PLAIN) y = keep ? y * p.grow : 0;
        const float weight = power(s - reach[j]);
        add(dk[i], weight * (y - delta[j]), q);
        if (keep) add(dv[i], PLAIN ? weight : weight * p.grow, dout);
      }
    };
    const Span seen = watchers(p, b, task.first(), task.first() + THREADS * Q);
    for (int64_t h = g * R; h < (g + 1) * R; h++) {
      const float slope = number(p.slopes, b, h, 0) * LOG2E;
      for (int m0 = seen.first; m0 < seen.last; m0 += ROWS) {
        const int rows = min(ROWS, (seen.last - m0 + EIGHT - 1) / EIGHT * EIGHT);
        __syncthreads();
        fill<W>(queries, rows, p.type, p.q, b, m0, h, p.M, p.K, p.scale * LOG2E);
        fill<W>(pulls, rows, p.type, p.dout, b, m0, h, p.dout.data ? p.M : 0, p.V);
        for (int i = threadIdx.x; i < rows; i += THREADS) {
          const bool live = m0 + i < p.M;
          const Span sees = live ? bounds(p, b, m0 + i) : Span{0, 0};
          at.lo[i] = sees.first, at.hi[i] = sees.last;
          reach[i] = live ? base2(number(p.lse, b, h, m0 + i)) : FAR;
          delta[i] = live ? number(p.delta, b, h, m0 + i) : 0;
        }
        __syncthreads();
#pragma unroll 1
        for (int row = 0; row < rows; row += EIGHT) {
          unsigned bits[Q] = {};
          if (p.key) {  // a lane decides for one of eight queries, and all have them all
#pragma unroll
            for (int i = 0; i < Q; i++)
              bits[i] = Lots(p, b, h, m0 + row + lane % EIGHT, (n + i * WARP) / EIGHT).bits(p);
          }
#pragma unroll 1
          for (int j = row; j < row + EIGHT; j++) {
            const int lo = at.lo[j], hi = at.hi[j], away = m0 + j - n;
            if (max(lo, first) >= min(hi, last)) continue;
            if (W < 32 && lo <= first && hi >= last && !p.slopes.data && !p.key)
              meet.template operator()<true>(j, lo, hi, away, slope, bits);
            else
              meet.template operator()<false>(j, lo, hi, away, slope, bits);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < Q; i++) {
      const int64_t row = (b * p.N + n + i * WARP) * p.G + g;
      if (n + i * WARP >= p.N) continue;
      if (p.result) store(dk[i], p.wide ? Dtype::f32 : p.type, p.result, row, p.K, LN2);
      if (p.result2) store(dv[i], p.wide2 ? Dtype::f32 : p.type, p.result2, row, p.V, 1);
    }
  }
}

#undef KERNEL

}  // namespace xfn
