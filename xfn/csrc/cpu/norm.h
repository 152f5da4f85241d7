// Layer and root mean square normalisation: y = (x − mean) r weight + bias with r = 1 / √(mean (x − mean)² + ε), where
// the latter has no mean. Backward, with n = (x − mean) r and g = dy weight: dx = r (g − mean g − n mean(g n)).
#pragma once

namespace {

template <class S, bool centered> struct Moments {
  S mean = 0, r = 0;
  INLINE Vec<S> apart(Vec<S> x) const { return centered ? x - mean : x; }
  INLINE Vec<S> operator()(Vec<S> x) const { return apart(x) * r; }
};

// r of a sum of squares, which is rounded once.
template <class S> INLINE S scale_of(S squares, const RowProblem& p) {
  return (S)(1 / std::sqrt((double)squares / (double)p.E + p.eps));
}

template <class T, bool centered> void norm(const RowProblem& p, int64_t index) {
  typedef typename RowTask<T>::S S;
  const RowTask<T> task(p, index);
  const S *weight = task.shared(p.weight), *bias = task.shared(p.bias);
  const S E = (S)p.E;
  for (long r = task.first; r < task.last; r++) {
    const T* x = task.row(p.x, r);
    T* y = task.out(r);
    Moments<S, centered> n;
    if (centered) n.mean = row_sum<S>(p.E, [&](long e, auto count) INLINE_LAMBDA { return widen(x + e, count); }) / E;
    const S squares = row_sum<S>(p.E, [&](long e, auto count) INLINE_LAMBDA {
      const Vec<S> d = first_lanes<S>(n.apart(widen(x + e, count)), count);
      return d * d;
    });
    n.r = scale_of(squares, p);
    each<S>(p.E, [&](long e, auto count) INLINE_LAMBDA {
      Vec<S> v = n(widen(x + e, count));
      if (weight) v *= widen(weight + e, count);
      if (bias) v += widen(bias + e, count);
      put(v, y + e, count, p.far);
    });
  }
}

template <class T, bool centered> struct NormBack : RowTask<T> {
  typedef typename RowTask<T>::S S;
  using RowTask<T>::p;
  const S* weight;
  S *dweight, *dbias;

  NormBack(const RowProblem& p, int64_t index)
      : RowTask<T>(p, index),
        weight(this->shared(p.weight)),
        dweight(this->sum(p.dweight)),
        dbias(this->sum(p.dbias)) {}

  // In twos: what rows share is loaded once, and their sums do not wait for each other.
  void run() const {
    long r = this->first;
    for (; r + 2 <= this->last; r += 2) rows<2>(r);
    if (r < this->last) rows<1>(r);
  }
  // Three passes: sums of x and g, those of what is apart from the mean, and what they are for.
  template <int some> void rows(long r) const {
    const T *x[some], *dy[some];
    T* dx[some];
    Moments<S, centered> n[some];
    S mean[some] = {}, along[some];  // of g, and of g n
    const S E = (S)p.E;
    for (int i = 0; i < some; i++) {
      x[i] = this->row(p.x, r + i), dy[i] = this->row(p.dy, r + i), dx[i] = this->out(r + i);
    }
    const auto g = [&](int i, long e, auto count) INLINE_LAMBDA {
      const Vec<S> d = widen(dy[i] + e, count);
      return weight ? d * widen(weight + e, count) : d;
    };
    if (centered) {
      const auto sums = row_sums<S, some, 2>(p.E, [&](int i, long e, auto count) INLINE_LAMBDA {
        return std::array{widen(x[i] + e, count), g(i, e, count)};
      });
      for (int i = 0; i < some; i++) n[i].mean = sums[i][0] / E, mean[i] = sums[i][1] / E;
    }
    const auto sums = row_sums<S, some, 2>(p.E, [&](int i, long e, auto count) INLINE_LAMBDA {
      ahead(x[i] + some * p.x.row + e), ahead(dy[i] + some * p.dy.row + e);
      const Vec<S> d = first_lanes<S>(n[i].apart(widen(x[i] + e, count)), count);
      return std::array{d * d, g(i, e, count) * d};
    });
    for (int i = 0; i < some; i++) n[i].r = scale_of(sums[i][0], p), along[i] = sums[i][1] * n[i].r / E;
    each<S>(p.E, [&](long e, auto count) INLINE_LAMBDA {
      const Vec<S> w = weight ? widen(weight + e, count) : splat((S)1);
      Vec<S> dw = dweight ? widen(dweight + e, count) : Vec<S>{}, db = dbias ? widen(dbias + e, count) : Vec<S>{};
      Vec<S> at[some], d[some];  // of all rows before one is written: loads wait for stores 4096 bytes away
#pragma GCC unroll 2
      for (int i = 0; i < some; i++) at[i] = n[i](widen(x[i] + e, count)), d[i] = widen(dy[i] + e, count);
#pragma GCC unroll 2
      for (int i = 0; i < some; i++) {
        dw += d[i] * at[i], db += d[i];
        if (dx[i]) put((d[i] * w - mean[i] - at[i] * along[i]) * n[i].r, dx[i] + e, count, p.far);
      }
      if (dweight) narrow(dw, dweight + e, count);
      if (dbias) narrow(db, dbias + e, count);
    });
  }
};

}  // namespace
