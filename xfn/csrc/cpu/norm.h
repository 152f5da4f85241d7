// Layer and root mean square normalisation: y = (x − mean) r weight + bias with r = 1 / √(mean (x − mean)² + ε), where
// the latter has no mean. Backward, with n = (x − mean) r and g = dy weight: dx = r (g − mean g − n mean(g n)).
#pragma once

namespace {

template <class S, bool centered> struct Moments {
  S mean = 0, r = 0;
  INLINE Vec<S> apart(Vec<S> x) const { return centered ? x - mean : x; }
  INLINE Vec<S> operator()(Vec<S> x) const { return apart(x) * r; }
};

// Some rows at once: what they share is loaded once, and their sums do not wait for each other.
template <class T, bool centered> struct Norm : RowTask<T> {
  typedef typename RowTask<T>::S S;
  using RowTask<T>::p;
  static constexpr int MOST = REGISTERS == 32 ? 4 : 2;
  const double E;
  const S *weight, *bias;
  S *dweight, *dbias, *kept;  // kept: mean and r of each row, or null

  Norm(const RowProblem& p, int64_t index)
      : RowTask<T>(p, index),
        E((double)p.E),
        weight(this->shared(p.weight)),
        bias(this->shared(p.bias)),
        dweight(this->sum(p.dweight)),
        dbias(this->sum(p.dbias)),
        kept(p.moments ? (S*)p.moments + this->part * p.R * 2 : nullptr) {}

  void forward() const {
    by_rows([&]<int some>(std::integral_constant<int, some>, long r) INLINE_LAMBDA { values<some>(r); });
  }
  void backward() const {
    by_rows([&]<int some>(std::integral_constant<int, some>, long r) INLINE_LAMBDA { gradients<some>(r); });
  }

 private:
  // f(rows, first of them): one by one where they contend for the same lines of the first cache.
  template <class F> void by_rows(const F& f) const {
    long r = this->first;
    for (; !contend() && r + MOST <= this->last; r += MOST) f(std::integral_constant<int, MOST>(), r);
    for (; r < this->last; r++) f(std::integral_constant<int, 1>(), r);
  }
  bool contend() const { return !p.far && p.E * sizeof(T) % 4096 == 0; }
  // Of a row each, in one place: those that were kept and those found anew have the same bits.
  template <int some> __attribute__((noinline)) void find(const T* const (&x)[some], Moments<S, centered>* n) const {
    if (centered) {
      const auto sums = row_sums<S, some, 2>(
          p.E, [&](int i, long e, auto count) INLINE_LAMBDA { return std::array{widen(x[i] + e, count)}; });
      for (int i = 0; i < some; i++) n[i].mean = (S)(sums[i][0] / E);
    }
    const auto squares = row_sums<S, some, 2>(p.E, [&](int i, long e, auto count) INLINE_LAMBDA {
      const Vec<S> d = first_lanes<S>(n[i].apart(widen(x[i] + e, count)), count);
      return std::array{d * d};
    });
    for (int i = 0; i < some; i++) settle(x[i], squares[i][0] / E, n[i]);
  }
  // r, from the mean of squares. A mean that is large beside it has lost digits of the row, which are found here.
  __attribute__((noinline)) void settle(const T* x, double squares, Moments<S, centered>& n) const {
    if (centered && (double)n.mean * n.mean > 16 * squares) {
      const auto apart = [&](long e, auto count)
                             INLINE_LAMBDA { return first_lanes<S>(n.apart(widen(x + e, count)), count); };
      const double rest = row_sum<S>(p.E, apart) / E;
      n.mean = (S)(n.mean + rest), squares = std::max(0., squares - rest * rest);
    }
    n.r = (S)(1 / std::sqrt(squares + p.eps));
  }

  template <int some> void values(long r) const {
    const S *const weight = this->weight, *const bias = this->bias;  // no store can change these
    const long soon = some * p.x.row;
    const bool far = p.far;
    const T* x[some];
    T* y[some];
    Moments<S, centered> n[some];
    for (int i = 0; i < some; i++) x[i] = this->row(p.x, r + i), y[i] = this->out(r + i);
    find<some>(x, n);
    for (int i = 0; kept && i < some; i++) kept[(r + i) * 2] = n[i].mean, kept[(r + i) * 2 + 1] = n[i].r;
    each<S>(p.E, [&](long e, auto count) INLINE_LAMBDA {
      const Vec<S> w = weight ? widen(weight + e, count) : splat((S)1), b = bias ? widen(bias + e, count) : Vec<S>{};
      Vec<S> v[some];  // of all rows before one is written: loads wait for stores 4096 bytes away
#pragma GCC unroll 4
      for (int i = 0; i < some; i++) {
        ahead(x[i] + soon + e);
        v[i] = n[i](widen(x[i] + e, count));
        KEEP(v[i]);  // rounded, however many rows there are
        v[i] = v[i] * w + b;
      }
#pragma GCC unroll 4
      for (int i = 0; i < some; i++) put(v[i], y[i] + e, count, far);
    });
  }

  template <int some> void gradients(long r) const {
    const S* const weight = this->weight;
    S *const dweight = this->dweight, *const dbias = this->dbias;
    const long soon[] = {some * p.x.row, some * p.dy.row};
    const bool far = p.far, claims = p.out && contend();
    const T *x[some], *dy[some];
    T* dx[some];
    Moments<S, centered> n[some];
    S mean[some] = {}, along[some];  // of g, and of g n
    for (int i = 0; i < some; i++) {
      x[i] = this->row(p.x, r + i), dy[i] = this->row(p.dy, r + i), dx[i] = this->out(r + i);
      if (kept) n[i] = {kept[(r + i) * 2], kept[(r + i) * 2 + 1]};
    }
    if (!kept) find<some>(x, n);
    const auto sums = row_sums<S, some, 2>(p.E, [&](int i, long e, auto count) INLINE_LAMBDA {
      if (claims) claim(dx[i] + e);
      const Vec<S> d = widen(dy[i] + e, count), g = weight ? d * widen(weight + e, count) : d;
      return std::array{g, g * first_lanes<S>(n[i].apart(widen(x[i] + e, count)), count)};
    });
    for (int i = 0; i < some; i++) {
      if (centered) mean[i] = (S)(sums[i][0] / E);
      along[i] = (S)(sums[i][1] * n[i].r / E);
    }
    each<S>(p.E, [&](long e, auto count) INLINE_LAMBDA {
      const Vec<S> w = weight ? widen(weight + e, count) : splat((S)1);
      Vec<S> dw = dweight ? widen(dweight + e, count) : Vec<S>{}, db = dbias ? widen(dbias + e, count) : Vec<S>{};
      Vec<S> at[some], d[some];
#pragma GCC unroll 4
      for (int i = 0; i < some; i++) {
        ahead(x[i] + soon[0] + e), ahead(dy[i] + soon[1] + e);
        at[i] = n[i](widen(x[i] + e, count)), d[i] = widen(dy[i] + e, count);
      }
#pragma GCC unroll 4
      for (int i = 0; i < some; i++) {
        dw += d[i] * at[i], db += d[i];
        Vec<S> less = at[i] * along[i] + mean[i];
        KEEP(less);
        if (dx[i]) put((d[i] * w - less) * n[i].r, dx[i] + e, count, far);
      }
      if (dweight) narrow(dw, dweight + e, count);
      if (dbias) narrow(db, dbias + e, count);
    });
  }
};

}  // namespace
