// Softmax of rows, y = exp(x − max) / Σ, and its logarithm, over what a row may see. Backward: dx = y (dy − Σ y dy), and
// dx = dy − exp(y) Σ dy of the logarithm.
#pragma once

namespace {

template <class T, bool logarithm> void softmax_rows(const RowProblem& p, int64_t index, Arena arena) {
  typedef RowTask<T> Task;
  typedef typename Task::S S;
  const Task task(p, index);
  S* powers = arena.take<S>(p.E);
  const S nothing = logarithm ? -infinity<S> : 0;
  for (long r = task.first; r < task.last; r++) {
    const auto [lo, hi] = task.seen(r);
    const long E = hi - lo;
    const T* x = task.row(p.x, r) + lo;
    T *whole = task.out(r), *y = whole + lo;
    const auto blank = [&](long from, long till) INLINE_LAMBDA {
      each<S>(till - from, [&](long e, auto count) INLINE_LAMBDA { narrow(splat(nothing), whole + from + e, count); });
    };
    blank(0, lo), blank(hi, p.E);
    Vec<S> top = splat(-infinity<S>), odd{};
    each<S>(E, [&](long e, auto count) INLINE_LAMBDA {
      Vec<S> v = widen(x + e, count);
      odd += v != v ? v : Vec<S>{};  // a NaN is no largest
      if constexpr (std::is_same_v<decltype(count), int>) v = first_lanes<S>(v, count, -infinity<S>);
      top = larger(v, top);
    });
    const S most = highest<S>(top)[0];
    if (most == -infinity<S> && total<S>(odd) == 0) {
      blank(lo, hi);
      continue;
    }
    const S sum = row_sum<S>(E, [&](long e, auto count) INLINE_LAMBDA {
      const Vec<S> power = first_lanes<S>(expv<S>(widen(x + e, count) - most), count);
      if (!logarithm) narrow(power, powers + e, count);
      return power;
    });
    const S by = logarithm ? std::log(sum) : (S)1 / sum;
    each<S>(E, [&](long e, auto count) INLINE_LAMBDA {
      put(logarithm ? widen(x + e, count) - most - by : widen(powers + e, count) * by, y + e, count, p.far);
    });
  }
}

template <class T, bool logarithm> void softmax_back(const RowProblem& p, int64_t index, Arena) {
  typedef RowTask<T> Task;
  typedef typename Task::S S;
  const Task task(p, index);
  for (long r = task.first; r < task.last; r++) {
    const T *y = task.row(p.y, r), *dy = task.row(p.dy, r);
    T* dx = task.out(r);
    const auto given = [&](Vec<S> y, Vec<S> d) INLINE_LAMBDA {  // without what a row does not see
      return logarithm ? y == -infinity<S> ? Vec<S>{} : d : d * y;
    };
    const S sum = row_sum<S>(
        p.E, [&](long e, auto count) INLINE_LAMBDA { return given(widen(y + e, count), widen(dy + e, count)); });
    each<S>(p.E, [&](long e, auto count) INLINE_LAMBDA {
      const Vec<S> at = widen(y + e, count), d = widen(dy + e, count);
      put(logarithm ? given(at, d) - expv<S>(at) * sum : at * (d - sum), dx + e, count, p.far);
    });
  }
}

}  // namespace
