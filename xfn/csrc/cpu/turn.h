// Pairs of features turned, those of all heads of a row by its angles: y[a] = cos x[a] − sin x[b] and
// y[b] = sin x[a] + cos x[b]. Backward dy turns back; dcos = Σ dy[a] x[a] + dy[b] x[b] and dsin = Σ dy[b] x[a] − dy[a] x[b] are sums over heads.
#pragma once

namespace {

template <class T, bool adjacent> struct Turn : RowTask<T> {
  typedef typename RowTask<T>::S S;
  using RowTask<T>::p;
  typedef std::pair<Vec<S>, Vec<S>> Two;

  Turn(const RowProblem& p, int64_t index, Arena&) : RowTask<T>(p, index) {}

  // Lanes of two vectors, one of each in turn; and apart again.
  static INLINE Two woven(Vec<S> u, Vec<S> v) {
    constexpr int n = L<S>;
    Vec<Int<S>> low{}, high{};
    for (int i = 0; i < n; i++) low[i] = i / 2 + i % 2 * n, high[i] = low[i] + n / 2;
    return {__builtin_shuffle(u, v, low), __builtin_shuffle(u, v, high)};
  }
  static INLINE Two apart(Vec<S> u, Vec<S> v) {
    Vec<Int<S>> even{}, odd{};
    for (int i = 0; i < L<S>; i++) even[i] = 2 * i, odd[i] = 2 * i + 1;
    return {__builtin_shuffle(u, v, even), __builtin_shuffle(u, v, odd)};
  }
  // Of 2 count numbers that lie side by side, how many the first vector has, and the second.
  static INLINE std::pair<int, int> shares(int count) {
    return {std::min(2 * count, L<S>), std::max(2 * count - L<S>, 0)};
  }
  INLINE Two pair(const T* x, long i, int count) const {
    if constexpr (!adjacent) return {widen(x + i, count), widen(x + p.pairs + i, count)};
    const auto [first, second] = shares(count);
    return apart(widen(x + 2 * i, first), widen(x + 2 * i + L<S>, second));
  }
  INLINE void give(Two two, T* y, long i, int count) const {
    if constexpr (!adjacent) {
      put(two.first, y + i, count, p.far), put(two.second, y + p.pairs + i, count, p.far);
    } else {
      const auto [first, second] = shares(count);
      const Two w = woven(two.first, two.second);
      put(w.first, y + 2 * i, first, p.far), put(w.second, y + 2 * i + L<S>, second, p.far);
    }
  }
  template <class N> N* table(N* data, const Grid& g, long r) const { return data + this->part * g.part + r * g.row; }

  void forward() const { run(p.x, 1); }
  void backward() const { run(p.dy, -1); }

  void run(const Grid& from, S sign) const {
    const long K = p.E / p.heads, left = K - 2 * p.pairs;
    const Grid whole{nullptr, p.R * p.pairs, p.pairs};
    for (long r = this->first; r < this->last; r++) {
      const S *cos = table((const S*)p.cos.data, p.cos, r), *sin = table((const S*)p.sin.data, p.sin, r);
      S* const dcos = p.dcos ? table((S*)p.dcos, whole, r) : nullptr;
      S* const dsin = p.dsin ? table((S*)p.dsin, whole, r) : nullptr;
      if (dcos) std::fill_n(dcos, p.pairs, (S)0);
      if (dsin) std::fill_n(dsin, p.pairs, (S)0);
      for (long h = 0; h < p.heads; h++) {
        const T* x = this->row(from, r) + h * from.head;
        if (p.out) {
          T* y = this->out(r) + h * K;
          each<S>(p.pairs, [&](long i, auto count) INLINE_LAMBDA {
            const auto [a, b] = pair(x, i, count);
            const Vec<S> c = widen(cos + i, count), s = widen(sin + i, count) * sign;
            give({a * c - b * s, a * s + b * c}, y, i, count);
          });
          each<S>(left, [&, x = x + 2 * p.pairs, y = y + 2 * p.pairs](long e, auto count)
                            INLINE_LAMBDA { put(widen(x + e, count), y + e, count, p.far); });
        }
        if (!dcos && !dsin) continue;
        const T* given = this->row(p.x, r) + h * p.x.head;
        each<S>(p.pairs, [&](long i, auto count) INLINE_LAMBDA {
          const auto [a, b] = pair(x, i, count);
          const auto [u, v] = pair(given, i, count);
          if (dcos) narrow(widen(dcos + i, count) + (a * u + b * v), dcos + i, count);
          if (dsin) narrow(widen(dsin + i, count) + (b * u - a * v), dsin + i, count);
        });
      }
    }
  }
};

}  // namespace
