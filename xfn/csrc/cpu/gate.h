// Between the products of a gated feed-forward: y = keep / (1 − p) silu(gate + gate_bias) (up + up_bias). Backward, with
// d = keep / (1 − p) dy, s = sigmoid(g) and both biases added: dup = d g s, dgate = d u s (1 + g (1 − s)).
#pragma once

namespace {

template <class T> struct Gate : Drawn<T> {
  typedef typename RowTask<T>::S S;
  using RowTask<T>::p;
  const S *gate_bias, *up_bias;

  Gate(const RowProblem& p, int64_t index, Arena& arena)
      : Drawn<T>(p, index, arena), gate_bias(this->shared(p.bias)), up_bias(this->shared(p.up_bias)) {}

  template <class Count> static INLINE Vec<S> moved(const T* x, const S* bias, long e, Count count) {
    const Vec<S> v = widen(x + e, count);
    return bias ? v + widen(bias + e, count) : v;
  }
  // f(r, at, e, count, g, u) for every vector, that of columns at + e of row r; its bits are at e.
  template <class F> INLINE void pairs(const F& f) const {
    for (long r = this->first; r < this->last; r++) {
      const T *gate = this->row(p.x, r), *up = this->row(p.up, r);
      for (long at = 0; at < p.E; at += COLUMNS) {
        const long count = std::min(COLUMNS, p.E - at);
        this->choose(r, at, count);
        each<S>(count, [&](long e, auto some) INLINE_LAMBDA {
          f(r, at, e, some, moved(gate, gate_bias, at + e, some), moved(up, up_bias, at + e, some));
        });
      }
    }
  }

  void forward() const {
    pairs([&](long r, long at, long e, auto some, Vec<S> g, Vec<S> u)
              INLINE_LAMBDA { put(this->kept(g * sigmoidv<S>(g) * u, e), this->out(r) + at + e, some, p.far); });
  }
  void backward() const {
    S *dgate_bias = this->sum(p.dbias), *dup_bias = this->sum(p.dup_bias);
    const auto give = [&](Vec<S> v, T* to, S* sum, long e, auto some) INLINE_LAMBDA {
      if (to) put(v, to + e, some, p.far);
      if (sum) narrow(widen(sum + e, some) + v, sum + e, some);
    };
    pairs([&](long r, long at, long e, auto some, Vec<S> g, Vec<S> u) INLINE_LAMBDA {
      const Vec<S> d = this->kept(widen(this->row(p.dy, r) + at + e, some), e), s = sigmoidv<S>(g), one = splat((S)1);
      give(d * s * u * (one + g * (one - s)), this->out(r), dgate_bias, at + e, some);
      give(d * s * g, this->result(p.dup, r), dup_bias, at + e, some);
    });
  }
};

}  // namespace
