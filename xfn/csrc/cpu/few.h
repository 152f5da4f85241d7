// The two products of few rows with many keys, in lanes of features: keys and values are read where they lie, and once.
//
// No prefetcher follows rows that lie pages apart, so memory is asked for each line `far` numbers before its turn; one
// by one between the products, for a core waits for no more than some lines at a time.
#pragma once

namespace {

// The sums of L vectors, one a lane.
template <class S, int step = 1> INLINE Vec<S> totals(Vec<S> (&r)[L<S>]) {
  constexpr int n = L<S>;
  if constexpr (step < n) {
    Vec<Int<S>> own{}, other{};
    for (int i = 0; i < n; i++) own[i] = i & step ? n + i : i, other[i] = i & step ? n + i - step : i + step;
#pragma GCC unroll 16
    for (int i = 0; i < n; i += 2 * step)
      r[i] = __builtin_shuffle(r[i], r[i + step], own) + __builtin_shuffle(r[i], r[i + step], other);
    return totals<S, step * 2>(r);
  }
  return r[0];
}

template <class Kind> struct Few {
  typedef typename Kind::T T;
  typedef typename Kind::S S;
  static constexpr int J = L<S>, N = J * Kind::PAIR;                   // lanes, and numbers in the words of a vector
  static constexpr int MOST = J < 4 ? J : 4;                           // rows at once
  static constexpr int WIDE = (REGISTERS == 32 ? 4 : 2) / Kind::PAIR;  // vectors of words at once

  // f(rows, first of them), with as many rows at once as registers hold.
  template <class F> static INLINE void by_rows(long R, F&& f) {
    long r = 0;
    if constexpr (MOST == 4)
      for (; r + 4 <= R; r += 4) f(std::integral_constant<int, 4>{}, r);
    for (; r + 2 <= R; r += 2) f(std::integral_constant<int, 2>{}, r);
    if (r < R) f(std::integral_constant<int, 1>{}, r);
  }

  // Rows of words q with L / rows keys: row r and key j in lane r · L / rows + j. Keys from `count` on repeat the last.
  template <int rows, bool whole, bool fetch>
  static INLINE Vec<S> dots(const S* q, long width, const T* k, long step, long far, long count, long features) {
    constexpr int each = J / rows, some = each < 4 ? each : 4;
    Vec<S> x[J];
#pragma GCC unroll 16
    for (int i = 0; i < J; i++) x[i] = Vec<S>{};
    const auto add = [&](long f, int left) INLINE_LAMBDA {
      Vec<S> row[rows];
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++) row[r] = load(q + r * width + f / Kind::PAIR);
      const T* at = k + f;
#pragma GCC unroll 4
      for (int j = 0; j < each; j += some, at += some * step) {
        asm("" : "+r"(at));  // one pointer for some keys: there are no registers for one each
#pragma GCC unroll 4
        for (int i = 0; i < some; i++) {
          const T* key = at + (whole ? i : std::min<long>(j + i, count - 1) - j) * step;
          if (fetch) __builtin_prefetch(key + far, 0, 2);
          const Vec<S> word = Kind::words(key, left);
#pragma GCC unroll 4
          for (int r = 0; r < rows; r++) x[r * each + j + i] = Kind::mac(word, row[r], x[r * each + j + i]);
        }
      }
    };
    long f = 0;
#pragma GCC unroll 1
    for (; f + N <= features; f += N) add(f, N);
    if (f < features) add(f, (int)(features - f));
    return totals<S>(x);
  }

  // o += P v for `wide` vectors of words, the last of them with `left` numbers; rows of P are `block` words apart.
  template <int rows, int wide, bool fetch> static INLINE void sums(const S* P, long block, const T* v, long step,
                                                                    long far, long count, int left, S* o, long width) {
    constexpr int W = wide * Kind::PAIR;
    Vec<S> x[rows][W];
#pragma GCC unroll 16
    for (int i = 0; i < rows * W; i++) x[i / W][i % W] = load(o + i / W * width + i % W * J);
    const auto add = [&](const T* one, const T* two) INLINE_LAMBDA {
#pragma GCC unroll 4
      for (int w = 0; fetch && w < wide; w++) {
        __builtin_prefetch(one + far + w * N, 0, 2);
        if (Kind::PAIR == 2) __builtin_prefetch(one + step + far + w * N, 0, 2);
      }
      Vec<S> value[W];
      Kind::template values<wide>(one, two, left, value);
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++) {
        Vec<S> weight = splat(P[r * block]);
        if constexpr (W > 1) KEEP(weight);
#pragma GCC unroll 4
        for (int w = 0; w < W; w++) x[r][w] = Kind::mac(weight, value[w], x[r][w]);
      }
      P++;
    };
    long j = 0;
#pragma GCC unroll 1
    for (; j + Kind::PAIR <= count; j += Kind::PAIR) add(v + j * step, v + (j + 1) * step);
    if (j < count) add(v + j * step, nullptr);
#pragma GCC unroll 16
    for (int i = 0; i < rows * W; i++) store(o + i / W * width + i % W * J, x[i / W][i % W]);
  }
};

}  // namespace
