// Softmax of rows, y = exp(x − max) / Σ, and its logarithm, over what a row may see. Backward: dx = y (dy − Σ y dy), and
// dx = dy − exp(y) Σ dy of the logarithm, over what a row sees: x tells where y is −∞, for that may have overflowed.
#pragma once

namespace {

// e^x, to what numbers of T show.
template <class T, class S> INLINE Vec<S> power(Vec<S> x) {
  constexpr int degree = std::is_same_v<T, bf16> ? 3 : sizeof(T) == 2 ? 4 : 5;
  return exp2v<degree, true>(x * (S)LOG2E);
}
template <class T, class S> INLINE bool has_nan(const T* x, long E) {
  Vec<S> odd{};
  each<S>(E, [&](long e, auto count) INLINE_LAMBDA {
    const Vec<S> v = widen(x + e, count);
    odd += v != v ? v : Vec<S>{};
  });
  return total<S>(odd) != 0;
}

template <class T, class S> void fill(T* line, long count, S with) {
  each<S>(count, [&](long e, auto count) INLINE_LAMBDA { narrow(splat(with), line + e, count); });
}

template <class T, bool logarithm> void softmax_rows(const RowProblem& p, int64_t index, Arena arena) {
  typedef RowTask<T> Task;
  typedef typename Task::S S;
  const Task task(p, index);
  S* powers = arena.take<S>(p.E);
  const long soon = p.x.row;
  const bool far = p.far;
  const S nothing = logarithm ? -infinity<S> : 0;
  for (long r = task.first; r < task.last; r++) {
    const auto [lo, hi] = task.seen(r);
    const long E = hi - lo;
    const T* x = task.row(p.x, r) + lo;
    T *whole = task.out(r), *y = whole + lo;
    if (E < p.E) fill(whole, lo, nothing), fill(whole + hi, p.E - hi, nothing);
    Vec<S> top = splat(-infinity<S>);
    each<S>(E, [&](long e, auto count) INLINE_LAMBDA {
      Vec<S> v = widen(x + e, count);
      if constexpr (std::is_same_v<decltype(count), int>) v = first_lanes<S>(v, count, -infinity<S>);
      top = larger(v, top);
    });
    const S most = highest<S>(top)[0];
    if (most == -infinity<S> && !has_nan<T, S>(x, E)) {  // a NaN is no largest, and makes the sum one
      fill(y, E, nothing);
      continue;
    }
    const S sum = (S)row_sum<S>(E, [&](long e, auto count) INLINE_LAMBDA {
      if (!far) claim(y + e);
      const Vec<S> v = first_lanes<S>(power<T, S>(widen(x + e, count) - most), count);
      if (!logarithm) narrow(v, powers + e, count);
      return v;
    });
    const S by = logarithm ? std::log(sum) : (S)1 / sum;
    each<S>(E, [&](long e, auto count) INLINE_LAMBDA {
      ahead(x + soon + e);
      put(logarithm ? widen(x + e, count) - most - by : widen(powers + e, count) * by, y + e, count, far);
    });
  }
}

// Σ y dy, or Σ dy; then `low`: whether some y is −∞. dx, if there is one, is written soon.
template <class T, bool logarithm, class S = typename RowTask<T>::S>
INLINE S along(const T* y, const T* dy, const T* dx, long E, bool& low) {
#ifdef AVX512BF16
  if constexpr (std::is_same_v<T, bf16>) {  // of pairs, without widening them
    constexpr long N = 2 * L<S>;
    double all = 0;
    __mmask32 some = 0;
    for (long e = 0; e < E;) {
      Vec<S> sum[2] = {};
      const auto add = [&](int way, long e, int left) INLINE_LAMBDA {
        if (dx) claim(dx + e);
        Vec<S> at = Pairs::words(y + e, left), d = Pairs::words(dy + e, left);
        if (logarithm) {
          some |= _mm512_cmpeq_epi16_mask((__m512i)at, _mm512_set1_epi16((short)0xff80));  // −∞
          at = (Vec<S>)_mm512_set1_epi16(0x3f80);                                          // 1
        }
        sum[way] = Pairs::mac(at, d, sum[way]);
      };
      const long end = std::min(E, e + FEW * 2 * N);
      for (; e + 2 * N <= end; e += 2 * N) add(0, e, N), add(1, e + N, N);
      for (; e < end; e += N) add(0, e, (int)std::min(N, end - e));
      all += total<S>(sum[0] + sum[1]);
    }
    low = some;
    return (S)all;
  }
#endif
  Vec<Int<S>> some{};
  const S sum = (S)row_sum<S>(E, [&](long e, auto count) INLINE_LAMBDA {
    const Vec<S> at = widen(y + e, count), d = widen(dy + e, count);
    if (dx) claim(dx + e);
    if (logarithm) some |= at == -infinity<S>;
    return logarithm ? d : d * at;
  });
  low = logarithm && any(some);
  return sum;
}

template <class T, bool logarithm> void softmax_back(const RowProblem& p, int64_t index, Arena) {
  typedef RowTask<T> Task;
  typedef typename Task::S S;
  const Task task(p, index);
  const long soon[] = {p.y.row, p.dy.row};
  const bool far = p.far;
  for (long r = task.first; r < task.last; r++) {
    const auto [lo, hi] = task.seen(r);
    const long E = hi - lo;
    const T *x = logarithm ? task.row(p.x, r) + lo : nullptr, *y = task.row(p.y, r) + lo, *dy = task.row(p.dy, r) + lo;
    T *whole = task.out(r), *dx = whole + lo;
    if (E < p.E) fill(whole, lo, (S)0), fill(whole + hi, p.E - hi, (S)0);
    const auto seen = [&](long e, auto count) INLINE_LAMBDA {
      return larger(widen(y + e, count), widen(x + e, count)) == -infinity<S> ? Vec<S>{} : widen(dy + e, count);
    };
    bool low;
    S sum = along<T, logarithm>(y, dy, far ? nullptr : dx, E, low);
    if (low) sum = (S)row_sum<S>(E, seen);
    each<S>(E, [&](long e, auto count) INLINE_LAMBDA {
      ahead(y + soon[0] + e), ahead(dy + soon[1] + e);
      const Vec<S> at = widen(y + e, count), d = low ? seen(e, count) : widen(dy + e, count);
      put(logarithm ? d - power<T, S>(at) * sum : at * (d - sum), dx + e, count, far);
    });
  }
}

}  // namespace
