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
  if (p.far) fence();
}

constexpr int TOGETHER = 4;  // rows that are added to dweight and dbias at once

template <class T, bool centered> struct NormBack : RowTask<T> {
  typedef typename RowTask<T>::S S;
  using RowTask<T>::p;
  struct Row {
    const T *x, *dy;
    T* dx;
    Moments<S, centered> n;
    S mean, along;  // of g, and of g n
  };
  const S* weight;
  S *dweight, *dbias;

  NormBack(const RowProblem& p, int64_t index)
      : RowTask<T>(p, index),
        weight(this->shared(p.weight)),
        dweight(this->sum(p.dweight)),
        dbias(this->sum(p.dbias)) {}

  template <class Count> INLINE Vec<S> g(const Row& row, long e, Count count) const {
    const Vec<S> d = widen(row.dy + e, count);
    return weight ? d * widen(weight + e, count) : d;
  }
  // Two passes: sums of x and g, and those of what is apart from the mean.
  Row look(long r) const {
    Row row{this->row(p.x, r), this->row(p.dy, r), this->out(r), {}, 0, 0};
    const S E = (S)p.E;
    if (centered) {
      const auto [x, g] = row_sums<S>(p.E, [&](long e, auto count) INLINE_LAMBDA {
        return std::array{widen(row.x + e, count), this->g(row, e, count)};
      });
      row.n.mean = x / E, row.mean = g / E;
    }
    const auto [squares, along] = row_sums<S>(p.E, [&](long e, auto count) INLINE_LAMBDA {
      const Vec<S> d = first_lanes<S>(row.n.apart(widen(row.x + e, count)), count);
      return std::array{d * d, this->g(row, e, count) * d};
    });
    row.n.r = scale_of(squares, p);
    row.along = along * row.n.r / E;
    return row;
  }
  template <int some> void finish(const Row (&rows)[TOGETHER]) const {
    each<S>(p.E, [&](long e, auto count) INLINE_LAMBDA {
      const Vec<S> w = weight ? widen(weight + e, count) : splat((S)1);
      Vec<S> dw = dweight ? widen(dweight + e, count) : Vec<S>{}, db = dbias ? widen(dbias + e, count) : Vec<S>{};
#pragma GCC unroll 4
      for (int i = 0; i < some; i++) {
        const Row& row = rows[i];
        const Vec<S> n = row.n(widen(row.x + e, count)), d = widen(row.dy + e, count);
        dw += d * n, db += d;
        if (row.dx) put((d * w - row.mean - n * row.along) * row.n.r, row.dx + e, count, p.far);
      }
      if (dweight) narrow(dw, dweight + e, count);
      if (dbias) narrow(db, dbias + e, count);
    });
  }
  void run() const {
    for (long r = this->first; r < this->last; r += TOGETHER) {
      const int some = (int)std::min<long>(TOGETHER, this->last - r);
      Row rows[TOGETHER];
      for (int i = 0; i < some; i++) rows[i] = look(r + i);
      if (some == TOGETHER) {
        finish<TOGETHER>(rows);
      } else {
        for (int i = 0; i < some; i++) {
          const Row one[TOGETHER] = {rows[i]};
          finish<1>(one);
        }
      }
    }
    if (p.far) fence();
  }
};

}  // namespace
