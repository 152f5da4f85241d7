// What kernels of ops on rows share: a row's vectors, and a task's rows.
#pragma once

namespace {

// f(at, count) for every vector of a row of E numbers; count is a constant but for the last.
template <class S, class F> INLINE void each(long E, const F& f) {
  long e = 0;
  for (; e + L<S> <= E; e += L<S>) f(e, std::integral_constant<int, L<S>>());
  if (e < E) f(e, (int)(E - e));
}

template <class T> struct RowTask {
  typedef std::conditional_t<std::is_same_v<T, double>, double, float> S;
  const RowProblem& p;
  long part, first, last, task;  // rows [first, last) of a part

  RowTask(const RowProblem& p, int64_t index)
      : p(p),
        part(index / p.tasks()),
        first(index % p.tasks() * p.chunk),
        last(std::min(first + p.chunk, p.R)),
        task(index) {}

  const T* row(const Grid& g, long r) const { return g.data ? (const T*)g.data + part * g.part + r * g.row : nullptr; }
  const S* shared(const Grid& g) const { return g.data ? (const S*)g.data + part * g.part : nullptr; }
  T* out(long r) const { return result(p.out, r); }
  T* result(void* of, long r) const { return of ? (T*)of + (part * p.R + r) * p.E : nullptr; }
  // This task's line of a sum over rows, where nothing has been added.
  S* sum(void* of) const {
    if (!of) return nullptr;
    S* line = (S*)of + task * p.E;
    std::fill_n(line, p.E, (S)0);
    return line;
  }
  // [first, last) of the columns that a row may see.
  std::pair<long, long> seen(long r) const {
    const auto at = [&](const Grid& g, long without) {
      return g.data ? std::clamp<long>(((const int64_t*)g.data)[part * g.part + r * g.row], 0, p.E) : without;
    };
    const long lo = at(p.lo, 0), hi = at(p.hi, p.E);
    return {std::min(lo, hi), hi};
  }
};

// Σ of each of the vectors that f(i, e, count) gives, over each of `rows`; what lies behind an end must be 0 there. A sum
// goes `ways` at once, for one would wait for itself; rows do not change what another one comes to. A lane adds FEW
// numbers and begins anew, for the more there are in a sum of floats, the more digits it loses.
constexpr long FEW = 64;
template <class S, int rows, int ways, class F> INLINE auto row_sums(long E, const F& f) {
  constexpr int n = std::tuple_size_v<decltype(f(0, 0, 0))>;
  constexpr long at_once = ways * L<S>;
  std::array<std::array<double, n>, rows> all = {};
  for (long e = 0; e < E;) {
    const long end = std::min(E, e + FEW * at_once);
    Vec<S> sums[rows][n][ways] = {};
    const auto add = [&](int way, long e, auto count) INLINE_LAMBDA {
#pragma GCC unroll 4
      for (int i = 0; i < rows; i++) {
        const auto found = f(i, e, count);
        for (int j = 0; j < n; j++) sums[i][j][way] += found[j];
      }
    };
    const std::integral_constant<int, L<S>> whole;
    for (; e + at_once <= end; e += at_once)
#pragma GCC unroll 4
      for (int way = 0; way < ways; way++) add(way, e + way * L<S>, whole);
    for (; e + L<S> <= end; e += L<S>) add(0, e, whole);
    if (e < end) add(1, e, (int)(end - e)), e = end;
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < n; j++) {
        const Vec<S>* sum = sums[i][j];
        if constexpr (ways == 4)
          all[i][j] += total<S>((sum[0] + sum[1]) + (sum[2] + sum[3]));
        else
          all[i][j] += total<S>(sum[0] + sum[1]);
      }
  }
  return all;
}
template <class S, class F> INLINE double row_sum(long E, const F& f) {
  return row_sums<S, 1, 4>(E, [&](int, long e, auto count) INLINE_LAMBDA { return std::array{f(e, count)}; })[0][0];
}

// v where the lane is below count, and another number beyond.
template <class S, class Count> INLINE Vec<S> first_lanes(Vec<S> v, Count count, S beyond = 0) {
  if constexpr (!std::is_same_v<Count, int>) {
    return v;
  } else {
    Vec<Int<S>> lane{};
    for (int i = 0; i < L<S>; i++) lane[i] = i;
    return lane < (Int<S>)count ? v : splat(beyond);
  }
}

}  // namespace
